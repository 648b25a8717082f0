"""The work of `cargo bench --bench bench -- pretrain`, done in eager PyTorch: python benches/peers/pretrain_torch.py

The same OpenLM (same sizes, same parameter names), bf16 autocast over f32 parameters, cross entropy + z-loss, clipping,
torch.optim.AdamW, random tokens. Arguments: --shape wide|vocab, --sequences N, --length T, --steps N, --threads N, --profile.
Prints seconds per step (median after two for warming up) and tokens/s, and the speed of a large bf16 matmul beside it.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

# width, layers, heads, ffn, vocabulary
SHAPES = {"wide": (512, 6, 8, 1536, 8192), "vocab": (256, 6, 4, 768, 50432)}


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        # in low precision under autocast, as open_lm's gain_only_lp_layer_norm does
        x, gain = x.to(torch.bfloat16), self.weight.to(torch.bfloat16)
        with torch.autocast("cpu", enabled=False):
            return F.layer_norm(x, gain.shape, gain, None, 1e-5)


class Block(nn.Module):
    def __init__(self, width, heads, ffn):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm, self.q_norm, self.k_norm = (Norm(width) for _ in range(4))
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.w12 = nn.Linear(width, 2 * ffn, bias=False)
        self.w3 = nn.Linear(ffn, width, bias=False)

    def attend(self, x, cos, sin):
        b, t, w = x.shape
        q, k, v = self.in_proj(x).chunk(3, -1)
        q, k, v = (y.view(b, t, self.heads, -1) for y in (self.q_norm(q), self.k_norm(k), v))
        rotated = []
        for y in (q, k):
            first, second = y.chunk(2, -1)
            rotated.append(y * cos + torch.cat((-second, first), -1) * sin)
        q, k = rotated
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return self.out_proj(out.transpose(1, 2).reshape(b, t, w))

    def forward(self, x, cos, sin):
        x = x + self.attend(self.attention_norm(x), cos, sin)
        gate, up = self.w12(self.ffn_norm(x)).chunk(2, -1)
        return x + self.w3(F.silu(gate) * up)


class OpenLM(nn.Module):
    def __init__(self, width, layers, heads, ffn, vocab):
        super().__init__()
        self.dim = width // heads
        self.tok_embeddings = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Block(width, heads, ffn) for _ in range(layers))
        self.norm = Norm(width)
        self.output = nn.Linear(width, vocab, bias=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.trunc_normal_(p, std=p.shape[1] ** -0.5)
        self.tables = {}

    def forward(self, tokens):
        t = tokens.shape[1]
        if t not in self.tables:
            inverse = 1.0 / 10000.0 ** (torch.arange(0, self.dim, 2).float() / self.dim)
            angle = torch.outer(torch.arange(t).float(), inverse)
            angle = torch.cat((angle, angle), -1)[None, :, None, :]
            self.tables[t] = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, *self.tables[t])
        return self.output(self.norm(x))


def peak():
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    best = 0.0
    for _ in range(6):
        begin = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - begin) / 1e9)
    return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="wide", choices=SHAPES)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = OpenLM(*SHAPES[args.shape])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.033)
    vocab = SHAPES[args.shape][4]

    def step():
        batch = torch.randint(0, vocab, (args.sequences, args.length + 1))
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
            flat = logits.float().flatten(0, 1)
            loss = F.cross_entropy(flat, batch[:, 1:].flatten()) + 1e-4 * (flat.logsumexp(-1) ** 2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return loss.item()

    times = []
    for _ in range(args.steps + 2):
        begin = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - begin)
    seconds = sorted(times[2:])[args.steps // 2]
    tokens = args.sequences * args.length
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "loss": loss, "seconds": seconds,
                      "tokens_per_second": tokens / seconds, "matmul_gflops": peak()}))
    if args.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=40))


main()
