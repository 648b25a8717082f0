#!/usr/bin/env python3
"""The work of `gpu-generate` (benches/parts/gpu_generate.rs) by transformers' generate: a Qwen3 shape with random weights, bf16, SDPA, temperature 1,
top-p 0.9, prompts of 1,024 tokens and 256 new ones.

    python3 benches/peers/gpu_generate.py 0.6B 64 [PROMPT NEW]
"""

import sys
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

SHAPES = {"0.6B": (1024, 28, 16, 3072), "1.7B": (2048, 28, 16, 6144), "4B": (2560, 36, 32, 9728)}


def main():
    name, batch = sys.argv[1], int(sys.argv[2])
    prompt, new = (int(n) for n in sys.argv[3:5]) if len(sys.argv) > 4 else (1024, 256)
    hidden, layers, heads, ffn = SHAPES[name]
    config = Qwen3Config(
        vocab_size=151936, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=prompt + new, rope_theta=1e6, tie_word_embeddings=True)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.model.norm.weight.fill_(5 / (0.02 * hidden**0.5))
    ids = torch.randint(0, 151936, (batch, prompt), device="cuda")
    how = dict(attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_p=0.9, top_k=0, pad_token_id=0)
    model.generate(ids[:, :64], **{**how, "attention_mask": how["attention_mask"][:, :64]}, max_new_tokens=4)
    torch.cuda.synchronize()
    begin = time.time()
    out = model.generate(ids, **how, max_new_tokens=new, min_new_tokens=new)
    torch.cuda.synchronize()
    seconds = time.time() - begin
    made = out.shape[1] - prompt
    print(f"transformers Qwen3-{name}, batch {batch}: {batch * made / seconds:.0f} tok/s out, {batch * (made + prompt) / seconds:.0f} in and out")


if __name__ == "__main__":
    main()
