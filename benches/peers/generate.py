"""The `generate` benchmark done with transformers: a random 29 M-parameter Qwen3 in bf16, greedy, every request of the
same length, so that padding costs nothing. Prints output tokens per second at each batch size.

    python benches/peers/generate.py [requests] [prompt tokens] [new tokens]
"""

import sys
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

REQUESTS, PROMPT, NEW = (int(x) for x in (sys.argv[1:] + ["64", "256", "128"][len(sys.argv) - 1:]))
CONFIG = Qwen3Config(vocab_size=8192, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
                     head_dim=64, intermediate_size=1536, max_position_embeddings=1024, tie_word_embeddings=True,
                     eos_token_id=None, bos_token_id=None)


def main():
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(CONFIG).to(torch.bfloat16).eval()
    prompts = torch.randint(0, CONFIG.vocab_size, (REQUESTS, PROMPT))
    with torch.inference_mode():
        model.generate(prompts[:2], max_new_tokens=4, do_sample=False, pad_token_id=0)
        for batch in (64, 128, 16, 32):
            if batch > REQUESTS and batch > 64:
                # As many requests as the batch asks for.
                prompts = torch.randint(0, CONFIG.vocab_size, (batch, PROMPT))
            start, cpu = time.perf_counter(), time.process_time()
            for first in range(0, len(prompts), batch):
                out = model.generate(prompts[first:first + batch], max_new_tokens=NEW, do_sample=False, pad_token_id=0)
                assert out.shape[1] == PROMPT + NEW
            seconds = time.perf_counter() - start
            cpu = (time.process_time() - cpu) / (len(prompts) * NEW) * 1e6
            print(f"transformers batch {batch}: {len(prompts) * NEW / seconds:.0f} tok/s, {cpu:.0f} µs of CPU a token", flush=True)


main()
