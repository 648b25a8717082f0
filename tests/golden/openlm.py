"""Makes tests/golden/openlm/: a tiny OpenLM in open_lm's parameter names, its logits, loss, gradients, and 20 AdamW steps.

Run with torch 2.11: python tests/golden/openlm.py
The model, the loss and the schedule are written here from the rules of reference sections 7.1 and 7.2, apart from the
program's own code and from the modeling file that exports carry. Everything is float32 on one thread.

model.safetensors: parameters, initialised wide so that errors show. config.json: the program's own keys.
expected.safetensors:
  tokens [20, 4, 14]   a batch a step; position t predicts t + 1
  logits [4, 13, V], loss, z_loss   of the first batch
  grad.NAME            gradient of loss + 1e-4 z_loss on the first batch
  losses [20], norms [20], rates [20]
  after.NAME           parameters after 20 steps: AdamW(0.9, 0.95) that decays everything, clip 1, warm-up 5, cosine
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "openlm"
VOCAB, WIDTH, LAYERS, HEADS, FFN, EPS, BASE = 61, 16, 2, 2, 24, 1e-5, 10000.0
STEPS, WARMUP, PEAK, END, DECAY, CLIP, Z = 20, 5, 1e-2, 1e-4, 0.033, 1.0, 1e-4


def norm(x, gain):
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + EPS) * gain


def rotary(x):
    """x [B, T, heads, D]: x cos + rotate_half(x) sin, angles position / base^(2i/D)."""
    length, dim = x.shape[1], x.shape[3]
    inverse = 1.0 / (BASE ** (torch.arange(0, dim, 2).float() / dim))
    angle = torch.outer(torch.arange(length).float(), inverse)
    angle = torch.cat((angle, angle), -1)[None, :, None, :]
    half = torch.cat((-x[..., dim // 2:], x[..., :dim // 2]), -1)
    return x * angle.cos() + half * angle.sin()


def attention(x, p, name):
    batch, length, _ = x.shape
    q, k, v = (x @ p[f"{name}.in_proj.weight"].T).chunk(3, -1)
    q, k = norm(q, p[f"{name}.q_norm.weight"]), norm(k, p[f"{name}.k_norm.weight"])
    q, k, v = (t.reshape(batch, length, HEADS, WIDTH // HEADS) for t in (q, k, v))
    q, k = rotary(q), rotary(k)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(WIDTH // HEADS)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(batch, length, WIDTH)
    return mixed @ p[f"{name}.out_proj.weight"].T


def logits(tokens, p):
    x = p["tok_embeddings.weight"][tokens]
    for layer in range(LAYERS):
        x = x + attention(norm(x, p[f"layers.{layer}.attention_norm.weight"]), p, f"layers.{layer}.attention")
        h = norm(x, p[f"layers.{layer}.ffn_norm.weight"])
        gate, up = (h @ p[f"layers.{layer}.feed_forward.w12.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ p[f"layers.{layer}.feed_forward.w3.weight"].T
    return norm(x, p["norm.weight"]) @ p["output.weight"].T


def losses(batch, p):
    out = logits(batch[:, :-1], p)
    loss = F.cross_entropy(out.flatten(0, 1), batch[:, 1:].flatten())
    z = (out.logsumexp(-1) ** 2).mean()
    return out, loss, z


def rate(step):
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    part = (step - WARMUP) / (STEPS - WARMUP)
    return END + 0.5 * (1 + math.cos(math.pi * part)) * (PEAK - END)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(11)
    shapes = {"tok_embeddings.weight": (VOCAB, WIDTH), "norm.weight": (WIDTH,), "output.weight": (VOCAB, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in {
            "attention_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,),
            "attention.in_proj.weight": (3 * WIDTH, WIDTH), "attention.out_proj.weight": (WIDTH, WIDTH),
            "attention.q_norm.weight": (WIDTH,), "attention.k_norm.weight": (WIDTH,),
            "feed_forward.w12.weight": (2 * FFN, WIDTH), "feed_forward.w3.weight": (WIDTH, FFN)}.items()}
    p = {}
    for name, shape in shapes.items():
        value = torch.empty(shape)
        p[name] = value.uniform_(0.5, 1.5) if len(shape) == 1 else value.normal_(0, 0.3)
        p[name].requires_grad_()
    OUT.mkdir(exist_ok=True)
    save_file({n: t.detach().clone() for n, t in p.items()}, OUT / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["OpenLMForCausalLM"], "model_type": "openlm", "vocab_size": VOCAB, "hidden_size": WIDTH,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": FFN,
              "max_position_embeddings": 32, "eos_token_id": 0}
    (OUT / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    tokens = torch.randint(0, VOCAB, (STEPS, 4, 14))
    expected = {"tokens": tokens}
    out, loss, z = losses(tokens[0], p)
    (loss + Z * z).backward()
    expected |= {"logits": out.detach(), "loss": loss.detach().view(1), "z_loss": z.detach().view(1)}
    expected |= {f"grad.{n}": t.grad.clone() for n, t in p.items()}
    optimiser = torch.optim.AdamW(p.values(), lr=PEAK, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY)
    seen, norms = [], []
    for step in range(STEPS):
        optimiser.zero_grad()
        _, loss, z = losses(tokens[step], p)
        (loss + Z * z).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(p.values(), CLIP))
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        optimiser.step()
        seen.append(loss.detach())
    expected |= {"losses": torch.stack(seen), "norms": torch.stack(norms),
                 "rates": torch.tensor([rate(s) for s in range(STEPS)], dtype=torch.float64)}
    expected |= {f"after.{n}": t.detach().clone() for n, t in p.items()}
    save_file({n: t.contiguous() for n, t in expected.items()}, OUT / "expected.safetensors")
    print("losses", [round(x.item(), 4) for x in seen], "norms", [round(x.item(), 3) for x in norms])


if __name__ == "__main__":
    main()
