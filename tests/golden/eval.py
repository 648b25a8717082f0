"""The evaluation harness's rules in Python on transformers, independent of the Rust code.

    python tests/golden/eval.py                       makes tests/golden/eval/: own task files, a tiny model, its expected scores
    python tests/golden/eval.py score MODEL DATA OUT [--limit N] [--max-length L] [--tasks a,b] [--batch-tokens T] [--dtype f32|bf16]
                                                      scores a Hugging Face directory on a directory of task files

The rules are those of llm-foundry 0.9.0's in-context-learning datasets and metrics (reference section 8), with Python's own
`random` and `set` for the few-shot examples. One forward pass a candidate sequence, sequences of like length together, full logits.
"""

import argparse
import json
import pathlib
import random
import time

import torch

HERE = pathlib.Path(__file__).parent / "eval"
A = "\nAnswer: "
# label: (kind, shots, delimiter, baseline v1, baseline v2, categories, file)
TASKS = {
    "copa": ("mc", 0, " ", 50, 50, False, "commonsense_reasoning/copa.jsonl"),
    "piqa": ("mc", 10, A, 50, 50, False, "commonsense_reasoning/piqa.jsonl"),
    "openbook_qa": ("mc", 0, " ", 25, 25, False, "commonsense_reasoning/openbook_qa.jsonl"),
    "hellaswag_zeroshot": ("mc", 0, " ", 25, 25, False, "language_understanding/hellaswag.jsonl"),
    "hellaswag": ("mc", 10, " ", 25, 25, False, "language_understanding/hellaswag.jsonl"),
    "lambada_openai": ("lm", 0, " ", 0, 0, False, "language_understanding/lambada_openai.jsonl"),
    "winograd": ("schema", 0, " ", 50, 50, False, "language_understanding/winograd_wsc.jsonl"),
    "winogrande": ("schema", 0, " ", 50, 50, False, "language_understanding/winogrande.jsonl"),
    "bigbench_language_identification": ("mc", 10, " ", 9.1, 25, False, "language_understanding/bigbench_language_identification.jsonl"),
    "squad": ("lm", 10, " ", 0, 0, False, "reading_comprehension/squad.jsonl"),
    "coqa": ("lm", 0, " ", 0, 0, False, "reading_comprehension/coqa.jsonl"),
    "boolq": ("mc", 10, A, 62, 62, False, "reading_comprehension/boolq.jsonl"),
    "bigbench_dyck_languages": ("lm", 10, " ", 0, 0, False, "symbolic_problem_solving/bigbench_dyck_languages.jsonl"),
    "agi_eval_lsat_ar": ("mc", 3, " ", 20, 25, False, "symbolic_problem_solving/agi_eval_lsat_ar.jsonl"),
    "bigbench_cs_algorithms": ("lm", 10, " ", 0, 0, False, "symbolic_problem_solving/bigbench_cs_algorithms.jsonl"),
    "bigbench_operators": ("lm", 10, " ", 0, 0, False, "symbolic_problem_solving/bigbench_operators.jsonl"),
    "bigbench_repeat_copy_logic": ("lm", 10, " ", 0, 0, False, "symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl"),
    "jeopardy": ("lm", 10, A, 0, 0, True, "world_knowledge/jeopardy_all.jsonl"),
    "bigbench_qa_wikidata": ("lm", 10, " ", 0, 0, False, "world_knowledge/bigbench_qa_wikidata.jsonl"),
    "arc_easy": ("mc", 10, A, 25, 25, False, "world_knowledge/arc_easy.jsonl"),
    "arc_challenge": ("mc", 10, A, 25, 25, False, "world_knowledge/arc_challenge.jsonl"),
    "mmlu_fewshot": ("mc", 5, A, 25, 25, True, "world_knowledge/mmlu.jsonl"),
    "commonsense_qa": ("mc", 10, " ", 20, 40.3, False, "commonsense_reasoning/commonsense_qa.jsonl"),
}


# The rules ---------------------------------------------------------------------------------------------------------------


def draw(rng, size, shots, item):
    """Example indices of one item, in the order in which a Python set yields them."""
    shots = min(size - 1, shots)
    chosen = set(rng.sample(range(size), shots))
    if item in chosen:
        chosen.remove(item)
        if len(chosen) < size - 1:
            other = rng.choice(range(size))
            while other in chosen or other == item:
                other = rng.choice(range(size))
            chosen.add(other)
    return list(chosen)


def read(path):
    rows = [json.loads(line) for line in open(path, encoding="utf-8") if line.strip()]
    return [{k: v.strip() if isinstance(v, str) else v for k, v in row.items()} | {"index": i} for i, row in enumerate(rows)]


def solved(kind, row, delimiter):
    if kind == "mc":
        return row["query"] + delimiter + row["choices"][row["gold"]]
    if kind == "schema":
        return row["context_options"][row["gold"]] + delimiter + row["continuation"]
    return row["context"] + delimiter + row["continuation"]


def sequences(task, rows, item, rng, tokenizer, max_length):
    """The (tokens, start of the continuation) pairs of one item, and whether a context was cut."""
    kind, shots, delimiter = task[:3]
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    prefix_space = len(encode(" a")) == 1
    spaced = lambda text: text if text.startswith(" ") or not prefix_space else " " + text
    shown = "\n".join(solved(kind, rows[i], delimiter) for i in draw(rng, len(rows), shots, item)) if shots else ""
    row = rows[item]
    join = "\n" if shown else ""
    if kind == "mc":
        pairs = [((join + row["query"] + delimiter).rstrip(), choice) for choice in row["choices"]]
    elif kind == "lm":
        pairs = [((join + row["context"] + delimiter).rstrip(), row["continuation"])]
    else:
        after = delimiter.rstrip() if shown else ""
        pairs = [(join + option + after, row["continuation"]) for option in row["context_options"]]
    before = tokenizer(shown)["input_ids"]
    found, cut = [], False
    for context, continuation in pairs:
        answer = encode(spaced(continuation))
        context = before + encode(context)
        room = max_length - len(answer)
        cut = cut or len(context) > room
        context = context[-room:]
        found.append((context + answer, len(context)))
    return found, cut


def prepared(task, rows, tokenizer, max_length, limit):
    """Every item with its sequences, in the order of evaluation."""
    parts = {}
    for row in rows:
        parts.setdefault(row["category"] if task[5] else "", []).append(row)
    each = None if limit is None else max(1, limit // len(parts))
    for category in sorted(parts):
        part, rng = parts[category], random.Random(1234)
        for item in range(len(part) if each is None else min(each, len(part))):
            found, cut = sequences(task, part, item, rng, tokenizer, max_length)
            yield part[item], found, cut


@torch.inference_mode()
def losses(model, batch):
    """Mean cross-entropy and greedy match of each sequence of a batch, right padded."""
    width = max(len(tokens) for tokens, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    for i, (tokens, _) in enumerate(batch):
        ids[i, :len(tokens)] = torch.tensor(tokens)
    logits = model(ids).logits.float()
    out = []
    for i, (tokens, start) in enumerate(batch):
        target = ids[i, start:len(tokens)]
        guess = logits[i, start - 1:len(tokens) - 1]
        best = guess.argmax(-1)
        out.append((torch.nn.functional.cross_entropy(guess, target).item(), best.tolist(), bool((best == target).all())))
    return out


def score_task(task, rows, model, tokenizer, max_length, limit, batch_tokens):
    items = list(prepared(task, rows, tokenizer, max_length, limit))
    flat = sorted(((i, c) for i, (_, found, _) in enumerate(items) for c in range(len(found))), key=lambda ic: len(items[ic[0]][1][ic[1]][0]))
    done, batch = {}, []
    def run():
        for key, result in zip(batch, losses(model, [items[i][1][c] for i, c in batch])):
            done[key] = result
        batch.clear()
    for key in flat:
        if batch and len(items[key[0]][1][key[1]][0]) * (len(batch) + 1) > batch_tokens:
            run()
        batch.append(key)
    if batch:
        run()
    out = []
    for i, (row, found, cut) in enumerate(items):
        results = [done[i, c] for c in range(len(found))]
        one = {"item": row["index"], "category": row.get("category") if task[5] else None, "losses": [r[0] for r in results], "trimmed": cut,
               "tokens": max(len(t) for t, _ in found)}
        if task[0] == "lm":
            one |= {"gold": None, "prediction": None, "correct": results[0][2], "greedy": results[0][1]}
        else:
            perplexities = [torch.exp(torch.tensor(r[0])).item() for r in results]
            lowest = perplexities.index(min(perplexities))
            one |= {"gold": row["gold"], "prediction": lowest, "correct": lowest == row["gold"]}
        out.append(one)
    return out, items


def summary(task, items):
    parts = {}
    for item in items:
        parts.setdefault(item["category"], []).append(item["correct"])
    accuracy = sum(sum(p) / len(p) for p in parts.values()) / len(parts)
    centered = lambda b: (accuracy - b / 100) / (1 - b / 100)
    return {"n": len(items), "accuracy": accuracy, "centered_v1": centered(task[3]), "centered_v2": centered(task[4])}


def find(data, task):
    for place in (task[6], task[6].split("/")[-1]):
        if (pathlib.Path(data) / place).exists():
            return pathlib.Path(data) / place
    return None


def score(model_dir, data, labels=None, limit=None, max_length=2048, batch_tokens=4096, dtype="f32", quiet=False):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=kind, trust_remote_code=True).eval()
    out = {}
    for label in labels or [name for name in TASKS if name != "commonsense_qa"]:
        task = TASKS[label]
        path = find(data, task)
        if path is None:
            continue
        start = time.perf_counter()
        items, _ = score_task(task, read(path), model, tokenizer, max_length, limit, batch_tokens)
        seconds = time.perf_counter() - start
        out[label] = summary(task, items) | {"seconds": seconds, "items": items}
        if not quiet:
            print(f"{label}: {len(items)} items, accuracy {out[label]['accuracy']:.4f}, {seconds:.1f} s", flush=True)
    return out


# The golden files --------------------------------------------------------------------------------------------------------

NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana"]
THINGS = ["lamp", "boat", "drum", "cake", "kite", "rope", "vase", "bell"]
COLOURS = ["red", "blue", "green", "white"]
PLACES = ["the garden", "the harbour", "the old mill", "the market"]


def own_tasks():
    """Small task files in the harness's form, with the corner cases that its rules have."""
    r = random.Random(5)
    pick = r.choice
    files = {}
    files["copa"] = [{"query": f"{n} dropped the {t}, therefore" + " " * (i % 3), "choices": [f"the {t} broke.", f"{pick(NAMES)} went to {pick(PLACES)}."], "gold": i % 2}
                     for i, (n, t) in enumerate((pick(NAMES), pick(THINGS)) for _ in range(14))]
    files["piqa"] = [{"query": f"Question: where does {pick(NAMES)} keep the {pick(COLOURS)} {t}?\n", "choices": [f"in {pick(PLACES)}", f" beside the {pick(THINGS)} in {pick(PLACES)}"], "gold": r.randrange(2)}
                     for t in [pick(THINGS) for _ in range(30)]]
    files["boolq"] = [{"query": f"Passage: The {t} of {n} is {c}. {'It stands in ' + pick(PLACES) + '. ' if i % 4 == 0 else ''}\nQuestion: is the {t} {c}?\n", "choices": ["no", "yes"], "gold": int(i % 3 > 0), "source": "own"}
                      for i, (n, t, c) in enumerate((pick(NAMES), pick(THINGS), pick(COLOURS)) for _ in range(20))]
    files["agi_eval_lsat_ar"] = [{"query": f"Passage: {pick(NAMES)} has a {pick(THINGS)} and a {pick(THINGS)}.\nQ: Which is it?\nChoices:\nA.) {pick(THINGS)}\nB.) {pick(THINGS)}\nC.) {pick(THINGS)}\nD.) {pick(THINGS)}\nAnswer: ", "choices": ["A", "B", "C", "D"], "gold": r.randrange(4)}
                                 for _ in range(9)]
    files["winograd"] = [{"context_options": [f"{a} gave {b} the {t} because {a}", f"{a} gave {b} the {t} because {b}"], "continuation": f" liked the {pick(COLOURS)} {t}. ", "gold": r.randrange(2)}
                         for a, b, t in ((*r.sample(NAMES, 2), pick(THINGS)) for _ in range(12))]
    files["winogrande"] = [{"context_options": [f"{a}", f"{b}"], "continuation": f"took the {pick(THINGS)} to {pick(PLACES)}", "gold": r.randrange(2)} for a, b in (r.sample(NAMES, 2) for _ in range(6))]
    files["lambada_openai"] = [{"context": f"{n} saw a {c} {t}. Nobody else wanted the {t}. So {n} took it home: a {c}", "continuation": t}
                               for n, c, t in ((pick(NAMES), pick(COLOURS), pick(THINGS)) for _ in range(16))]
    # One item is far longer than the context.
    files["lambada_openai"][3]["context"] = " ".join([f"{n} had a {t}." for n in NAMES for t in THINGS * 2]) + " Hana had a"
    files["lambada_openai"][3]["continuation"] = "bell"
    files["bigbench_repeat_copy_logic"] = [{"context": f"Q: say {t} {k} times\nA:", "continuation": " ".join([t] * k) + " " * (k % 2)}
                                           for t, k in ((pick(THINGS), r.randrange(1, 4)) for _ in range(11))]
    files["jeopardy"] = [{"context": f"{c.upper()}: the colour of the {t}\u001f", "continuation": pick(COLOURS), "category": c}
                         for c, t in ((c, pick(THINGS)) for c in ["world_history", "literature", "science"] for _ in range(7))]
    r.shuffle(files["jeopardy"])
    files["mmlu_fewshot"] = [{"query": f"Which is {pick(COLOURS)}?\nA. {pick(THINGS)}\nB. {pick(THINGS)}\nC. {pick(THINGS)}\nD. {pick(THINGS)}", "choices": ["A", "B", "C", "D"], "gold": r.randrange(4), "category": f"{k}s"}
                             for k in ["anatomy", "law", "virology"] for _ in range(4)]
    files["mmlu_fewshot"].append(dict(files["mmlu_fewshot"][0], category="zoology"))
    files["arc_easy"] = [{"query": f"Question: what did {pick(NAMES)} bring to {pick(PLACES)}?", "choices": [f"a {t}" for t in r.sample(THINGS, 3 + i % 2)], "gold": r.randrange(3)} for i in range(13)]
    return files


def tiny_tokenizer(texts, directory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(directory)


def tiny_model(texts, directory):
    """A small Llama after a few hundred steps on some of the texts: good enough to be right now and then."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    config = LlamaConfig(vocab_size=384, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
                         max_position_embeddings=400, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, initializer_range=0.1)
    model = LlamaForCausalLM(config)
    ids = torch.tensor([i for n, text in enumerate(texts * 4) for i in tokenizer(text + "\n" * (n % 4 > 0))["input_ids"] + [0] * (n % 4 == 0)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(600):
        starts = torch.randint(0, len(ids) - 97, (8,))
        batch = torch.stack([ids[s:s + 96] for s in starts])
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    print("training loss", round(loss.item(), 3))
    model.eval().save_pretrained(directory)


def draws():
    out = []
    for items, shots in [(1, 3), (2, 10), (4, 3), (11, 10), (12, 5), (32, 10), (60, 5), (86, 10), (230, 3), (1267, 10), (20321, 10)]:
        rng = random.Random(1234)
        count = min(items, 40 if items > 300 else items)
        # The last items come up among their own examples more often in a small file; a large one needs many for that.
        out.append({"items": items, "shots": shots, "draws": [draw(rng, items, shots, i) for i in range(count)]})
    return out


def golden():
    torch.set_num_threads(1)
    data, model_dir = HERE / "local_data", HERE / "model"
    files = own_tasks()
    for label, rows in files.items():
        path = data / TASKS[label][6]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    texts = [solved(TASKS[label][0], row, TASKS[label][2]) for label, rows in files.items() for i, row in enumerate(rows) if i % 2]
    tiny_tokenizer(texts, model_dir)
    tiny_model(texts, model_dir)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), AutoModelForCausalLM.from_pretrained(model_dir).eval()
    expected = {}
    for label in files:
        task = TASKS[label]
        items, asked = score_task(task, read(data / task[6]), model, tokenizer, 400, None, 2000)
        # A near tie would make the expected prediction a matter of rounding.
        for item in items:
            if item["prediction"] is not None:
                first, second = sorted(item["losses"])[:2]
                assert second - first > 1e-4 or first == second, (label, item)
        prompts = {row["index"]: [{"tokens": tokens, "from": start} for tokens, start in found] for row, found, _ in asked}
        first = {i: prompts[i] for i in list(prompts)[:3]}
        expected[label] = summary(task, items) | {"items": items, "prompts": first}
        print(label, {k: v for k, v in expected[label].items() if k not in ("items", "prompts")}, sum(i["trimmed"] for i in items), "trimmed")
    (HERE / "expected.json").write_text(json.dumps(expected, separators=(",", ":")))
    (HERE / "draws.json").write_text(json.dumps(draws(), separators=(",", ":")))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="golden", choices=["golden", "score"])
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--tasks")
    parser.add_argument("--dtype", default="f32")
    args = parser.parse_args()
    if args.what == "golden":
        return golden()
    model, data, out = args.paths
    labels = args.tasks.split(",") if args.tasks else None
    result = score(model, data, labels, args.limit, args.max_length, args.batch_tokens, args.dtype)
    pathlib.Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
