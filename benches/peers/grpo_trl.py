"""The `grpo` benchmark done with TRL's GRPOTrainer: one step of 8 prompts of 128 tokens x 8 completions of 128 tokens, on a random
29 M-parameter Qwen3, beta 0.005, a reward that costs nothing. Prints seconds a step (median, the first step left out) and the
process's peak memory.

    python benches/peers/grpo_trl.py [bf16|autocast|f32] [steps] [completions a backward pass]

bf16: parameters in bf16; autocast: f32 parameters, bf16 matmuls; f32: all in f32.
"""

import resource
import statistics
import sys
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

MODE, STEPS, MICRO = (sys.argv[1:] + ["autocast", "4", "8"][len(sys.argv) - 1:])
STEPS, MICRO = int(STEPS), int(MICRO)
PROMPTS, SAMPLES, PROMPT, NEW, VOCAB = 8, 8, 128, 128, 8192


class Times(TrainerCallback):
    def __init__(self):
        self.marks = []

    def on_step_begin(self, *_, **__):
        self.marks.append(time.perf_counter())

    def on_step_end(self, *_, **__):
        self.marks[-1] = time.perf_counter() - self.marks[-1]


def main():
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=VOCAB, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
                         intermediate_size=1536, max_position_embeddings=1024, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0)
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w2"))
    from tokenizers.pre_tokenizers import WhitespaceSplit
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w1", pad_token="w0", unk_token="w2", model_input_names=["input_ids", "attention_mask"])
    random = torch.Generator().manual_seed(3)
    prompt = lambda: " ".join(f"w{i}" for i in torch.randint(3, VOCAB, (PROMPT,), generator=random).tolist())
    with tempfile.TemporaryDirectory() as home:
        Qwen3ForCausalLM(config).save_pretrained(home)
        args = GRPOConfig(
            output_dir=home + "/out", use_cpu=True, bf16=MODE == "autocast", report_to=[], save_strategy="no", max_steps=STEPS,
            per_device_train_batch_size=MICRO, gradient_accumulation_steps=PROMPTS * SAMPLES // MICRO, num_generations=SAMPLES,
            max_completion_length=NEW, loss_type="bnpo", beta=0.005, temperature=1.0, top_p=0.9, learning_rate=1e-6,
            gradient_checkpointing=False, disable_tqdm=True, generation_kwargs={"min_new_tokens": NEW, "top_k": 0},
            model_init_kwargs={"dtype": "bfloat16" if MODE == "bf16" else "float32"})
        times = Times()
        trainer = GRPOTrainer(model=home, args=args, train_dataset=Dataset.from_list([{"prompt": prompt()} for _ in range(64)]),
                              processing_class=tokenizer, callbacks=[times],
                              reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids])
        trainer.train()
    steps = times.marks[1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"TRL {MODE}, {MICRO} a pass: {statistics.median(steps):.2f} s a step (median of {len(steps)}; {min(steps):.2f} to "
          f"{max(steps):.2f}); peak memory {peak} MiB", flush=True)


main()
