"""Makes tests/golden/decoders/: tiny random decoders as transformers saves them, their logits and 64 greedy tokens.

Run with torch 2.11 and transformers: python tests/golden/decoders.py
Each directory is what `save_pretrained` writes, plus expected.safetensors: for prompt i, `prompt.i` [T] and
`greedy.i` [64] as int64, `logits.i` [T, V] as float32. Attention is the plain ("eager") one, in float32.
"""

import pathlib

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = pathlib.Path(__file__).parent / "decoders"
LENGTHS = [1, 3, 17, 33, 40]
COMMON = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
              max_position_embeddings=256, bos_token_id=None, eos_token_id=None, attn_implementation="eager")
MODELS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
                                            rope_parameters={"rope_type": "default", "rope_theta": 1e6}), "5GB"),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**COMMON, num_key_value_heads=1, tie_word_embeddings=False,
                                            rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                                             "original_max_position_embeddings": 32}), "5GB"),
    # Saved in several shards.
    "llama": (LlamaForCausalLM, LlamaConfig(**COMMON, num_key_value_heads=4, tie_word_embeddings=False,
                                            rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
                                                             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                             "original_max_position_embeddings": 64}), "40KB"),
}


def main():
    torch.set_num_threads(1)
    for number, (name, (model_class, config, shard)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model = model_class(config).float().eval()
        with torch.no_grad():
            for parameter_name, p in model.named_parameters():
                if parameter_name.endswith("norm.weight"):
                    p.uniform_(0.5, 1.5)
                else:
                    # Wide enough that the sequences do not fall into a loop at once.
                    p.normal_(0.0, 0.35)
        directory = HERE / name
        model.save_pretrained(directory, max_shard_size=shard)
        expected = {}
        for i, length in enumerate(LENGTHS):
            prompt = torch.randint(0, config.vocab_size, (1, length))
            with torch.no_grad():
                logits = model(prompt).logits[0]
                tokens = prompt
                smallest = 1e9
                for _ in range(64):
                    last = model(tokens).logits[0, -1]
                    top = last.topk(2).values
                    smallest = min(smallest, (top[0] - top[1]).item())
                    tokens = torch.cat([tokens, last.argmax().view(1, 1)], 1)
            expected |= {f"prompt.{i}": prompt[0], f"logits.{i}": logits.contiguous(), f"greedy.{i}": tokens[0, length:].contiguous()}
            print(name, length, "distinct", len(set(tokens[0, length:].tolist())), "smallest gap", round(smallest, 4))
            # A near tie would make the expected tokens a matter of rounding.
            assert smallest > 1e-3, "choose another seed"
        save_file(expected, directory / "expected.safetensors")


main()
