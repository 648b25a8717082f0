"""Makes tests/golden/grpo/: GRPO as TRL's GRPOTrainer computes it, for the test in tests/it/grpo.rs.

Run with torch 2.11, transformers and trl: python tests/golden/grpo.py
The trainer itself runs (`train()`), on the tiny Qwen3 of decoders/qwen3, with given completions instead of drawn ones and a
reward read from a list. Two loss batches (gradient accumulation). For each case cases.json holds the settings, the prompts,
completions and rewards, which completion was in which loss batch, the advantages and the loss of every optimiser step; and
<case>.safetensors the gradient of the first step before clipping (`grad.<parameter>`) and, for some, the weights after five
steps (`after.<parameter>`). Float32, one thread.
"""

import json
import os
import pathlib
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

HERE = pathlib.Path(__file__).parent
OUT = HERE / "grpo"
EOS, PAD, VOCAB, LONGEST = 1, 0, 96, 12
GROUPS, SAMPLES, STEPS = 3, 4, 5

CASES = {
    "bnpo": dict(loss_type="bnpo", beta=0.04, weights=True),
    "grpo": dict(loss_type="grpo", beta=0.04),
    "dr_grpo": dict(loss_type="dr_grpo", beta=0.04),
    "dapo": dict(loss_type="dapo", beta=0.04),
    # Off policy: five updates on the same completions, so that the clip binds.
    "clipped": dict(loss_type="bnpo", beta=0.0, num_iterations=5, epsilon=0.1, epsilon_high=0.15, temperature=0.7,
                    scale_rewards="none", mask_truncated_completions=True, learning_rate=2e-4, clip=0.5, weights=True),
}


def tokenizer():
    words = {f"w{i}": i for i in range(VOCAB)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w1", pad_token="w0", unk_token="w2")


def rollouts(seed):
    """Completions of one step: half of them end, the others are cut off at the longest length."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(2, VOCAB, (n,), generator=random).tolist()
    prompts = [draw(n) for n in (3, 9, 5)]
    completions = []
    for i in range(GROUPS * SAMPLES):
        ends = i % 3 != 2
        # One that ends at once; all others differ, so that they are found again in TRL's shuffled batches.
        length = 1 if i == 0 else int(torch.randint(3, LONGEST, (1,), generator=random))
        completions.append(draw(length - 1) + [EOS] if ends else draw(LONGEST))
    rewards = [round(x, 3) for x in (torch.rand(GROUPS * SAMPLES, generator=random) * 6).tolist()]
    return prompts, completions, rewards


class Recorded(GRPOTrainer):
    """Notes what each loss batch held."""

    def note(self, recorded):
        self.recorded = recorded

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        ids = [row[mask.bool()].tolist() if mask.any() else None
               for row, mask in zip(inputs["completion_ids"], inputs["completion_mask"])]
        self.recorded.append(dict(ids=ids, advantages=inputs["advantages"].tolist(), loss=float(loss)))
        return loss


class Gradients(TrainerCallback):
    def __init__(self, model):
        self.model, self.first = model, None

    def on_pre_optimizer_step(self, *_, **__):
        if self.first is None:
            self.first = {f"grad.{n}": p.grad.clone() for n, p in self.model.named_parameters()}


def run(name, case, clip, steps):
    torch.manual_seed(1)
    model = Qwen3ForCausalLM.from_pretrained(HERE / "decoders/qwen3", dtype=torch.float32, attn_implementation="eager")
    iterations = case.get("num_iterations", 1)
    used = [rollouts(100 + s) for s in range(-(-steps // iterations))]
    served, recorded = [], []

    def roll(prompts, trainer):
        p, c, _ = used[len(served)]
        served.append(1)
        return dict(prompt_ids=[p[i // SAMPLES] for i in range(len(c))], completion_ids=c, logprobs=None)

    def reward(completion_ids, **_):
        _, c, r = used[len(served) - 1]
        assert completion_ids == c
        return r

    with tempfile.TemporaryDirectory() as directory:
        args = GRPOConfig(
            output_dir=directory, use_cpu=True, bf16=False, fp16=False, report_to=[], save_strategy="no", logging_steps=1,
            per_device_train_batch_size=GROUPS * SAMPLES // 2, gradient_accumulation_steps=2, num_generations=SAMPLES,
            max_completion_length=LONGEST, max_steps=steps, learning_rate=case.get("learning_rate", 1e-3),
            lr_scheduler_type="constant", max_grad_norm=clip, loss_type=case["loss_type"], beta=case["beta"],
            epsilon=case.get("epsilon", 0.2), epsilon_high=case.get("epsilon_high", 0.2), num_iterations=iterations,
            temperature=case.get("temperature", 1.0), scale_rewards=case.get("scale_rewards", "group"),
            mask_truncated_completions=case.get("mask_truncated_completions", False), weight_decay=0.0,
            gradient_checkpointing=False, seed=3, disable_tqdm=True)
        dataset = Dataset.from_list([{"prompt": "w5"}] * 64)
        trainer = Recorded(model=model, args=args, train_dataset=dataset, processing_class=tokenizer(),
                           reward_funcs=reward, rollout_func=roll)
        trainer.note(recorded)
        gradients = Gradients(trainer.model)
        trainer.add_callback(gradients)
        trainer.train()
    after = {f"after.{n}": p.detach().clone() for n, p in trainer.model.named_parameters()}
    return used, recorded, gradients.first, after


def steps_of(used, recorded, iterations):
    """Loss batches by index of the completion; masked completions, which TRL shows as nothing, fill the free places."""
    steps = []
    for s in range(0, len(recorded), 2):
        _, completions, _ = used[s // 2 // iterations]
        pair, batch_of = recorded[s:s + 2], [None] * len(completions)
        advantages = [None] * len(completions)
        for b, part in enumerate(pair):
            for ids, advantage in zip(part["ids"], part["advantages"]):
                if ids is not None:
                    at = next(i for i, c in enumerate(completions) if c == ids and batch_of[i] is None)
                    batch_of[at], advantages[at] = b, advantage
        free = [b for b, part in enumerate(pair) for ids in part["ids"] if ids is None]
        for i in range(len(completions)):
            if batch_of[i] is None:
                batch_of[i] = free.pop()
        steps.append(dict(rollout=s // 2 // iterations, batches=batch_of, advantages=advantages,
                          loss=sum(part["loss"] for part in pair)))
    return steps


def main():
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    cases = {}
    for name, case in CASES.items():
        _, _, grads, _ = run(name, case, 0.0, 1)
        clip = case.get("clip", 1.0)
        used, recorded, _, after = run(name, case, clip, STEPS)
        tensors = {n: t.contiguous() for n, t in (grads | (after if case.get("weights") else {})).items() if "lm_head" not in n}
        save_file(tensors, OUT / f"{name}.safetensors")
        settings = dict(epsilon=0.2, epsilon_high=0.2, temperature=1.0, scale_rewards="group", learning_rate=1e-3,
                        num_iterations=1, mask_truncated_completions=False) | case | dict(clip=clip, longest=LONGEST, samples=SAMPLES)
        settings.pop("weights", None)
        cases[name] = dict(settings=settings, steps=steps_of(used, recorded, settings["num_iterations"]),
                           rollouts=[dict(prompts=p, completions=c, rewards=r) for p, c, r in used])
        print(name, [round(s["loss"], 6) for s in cases[name]["steps"]])
    (OUT / "cases.json").write_text(json.dumps(cases) + "\n")


main()
