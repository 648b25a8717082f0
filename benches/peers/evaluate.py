"""The `evaluate` stage against a straightforward scorer on transformers: the same model, the same task files, the same prompts.

    python benches/peers/evaluate.py REPRO MODEL DATA [--limit N] [--max-length L] [--tasks a,b] [--rounds R] [--precision f32|bf16]
                                     [--threads T] [--keep DIR]

The scorer is that of tests/golden/eval.py: one sequence a candidate, sequences of like length together, logits of all places.
The two score a task one after the other, with as many threads; the figure of a task is the median of its rounds. Loading and start-up are
not counted, tokenising is. With --keep a finished task's results stay in that directory and are not made again.
Prints a table, how many predictions differ, and by how much the centered accuracies do.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent.parent


def repro(args, labels, home):
    """Seconds and centered accuracy of each task and the items, of one run of the program."""
    settings = {"model": args.model, "tasks": args.data, "precision": args.precision, "include": labels, "threads": args.threads}
    settings |= {"limit": args.limit} if args.limit else {}
    settings |= {"max_length": args.max_length} if args.max_length else {}
    pipeline = pathlib.Path(home) / "p.yaml"
    pipeline.write_text(json.dumps({"location": f"{home}/run", "stages": [{"table": "evals", "evaluate": settings}]}))
    subprocess.run([args.repro, "run", str(pipeline), "--force", "evals"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = lambda table, what: [json.loads(line) for line in subprocess.run(
        [args.repro, "sql", "--format", "json", "--table", f"t={home}/run/{table}", f"SELECT {what} FROM t"], check=True, capture_output=True, text=True).stdout.splitlines()]
    tasks = rows("evals", "task, seconds, centered, status")
    seconds = {row["task"]: row["seconds"] for row in tasks if row["status"] == "scored"}
    centered = {row["task"]: row["centered"] for row in tasks if row["status"] == "scored"}
    items = {(row["task"], row["item"]): (row["prediction"], row["correct"]) for row in rows("evals_items", "task, item, prediction, correct")}
    return seconds, centered, items


def peer(args, labels):
    spec = importlib.util.spec_from_file_location("rules", ROOT / "tests/golden/eval.py")
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    out = rules.score(args.model, args.data, labels, args.limit, args.max_length or 2048, dtype=args.precision, quiet=True)
    seconds = {label: task["seconds"] for label, task in out.items()}
    centered = {label: task["centered_v1"] for label, task in out.items()}
    return seconds, centered, {(label, item["item"]): (item["prediction"], item["correct"]) for label, task in out.items() for item in task["items"]}


def both(args, label, number):
    """A task's results of one round: ours, theirs."""
    kept = pathlib.Path(args.keep) / f"{label}.{number}.json" if args.keep else None
    if kept and kept.exists():
        found = json.loads(kept.read_text())
    else:
        with tempfile.TemporaryDirectory() as home:
            found = [repro(args, [label], home), peer(args, [label])]
        found = [[seconds, centered, [[*key, *value] for key, value in items.items()]] for seconds, centered, items in found]
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".tmp").write_text(json.dumps(found))
            kept.with_suffix(".tmp").rename(kept)
    print(f"{label}: {len(found[1][2])} items, repro {found[0][0][label]:.1f} s, transformers {found[1][0][label]:.1f} s", file=sys.stderr, flush=True)
    return [(seconds, centered, {(task, item): (guess, correct) for task, item, guess, correct in items}) for seconds, centered, items in found]


def main():
    parser = argparse.ArgumentParser()
    for name in ("repro", "model", "data"):
        parser.add_argument(name)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--tasks", default="copa,piqa,openbook_qa,lambada_openai,winogrande,bigbench_language_identification,bigbench_dyck_languages,"
                        "agi_eval_lsat_ar,bigbench_cs_algorithms,bigbench_repeat_copy_logic,jeopardy,bigbench_qa_wikidata,arc_easy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep")
    args = parser.parse_args()
    labels = args.tasks.split(",")
    import torch
    torch.set_num_threads(args.threads)
    ours, theirs, items, expected, centered, expected_centered = {}, {}, {}, {}, {}, {}
    for number in range(args.rounds):
        for label in labels:
            here, there = both(args, label, number)
            ours.setdefault(label, []).append(here[0][label])
            theirs.setdefault(label, []).append(there[0][label])
            for (_, means, answers), to_means, to_answers in ((here, centered, items), (there, expected_centered, expected)):
                to_means.update(means)
                to_answers.update(answers)
    differ = sum(items.get(key) != value for key, value in expected.items())
    apart = max(abs(centered[label] - value) for label, value in expected_centered.items())
    print("| task | items | repro, s | transformers, s | times |\n|---|---|---|---|---|")
    total = [0.0, 0.0]
    for label in labels:
        a, b = statistics.median(ours[label]), statistics.median(theirs[label])
        total = [total[0] + a, total[1] + b]
        print(f"| {label} | {sum(key[0] == label for key in expected)} | {a:.2f} | {b:.2f} | {b / a:.1f} |")
    print(f"| all | {len(expected)} | {total[0]:.1f} | {total[1]:.1f} | {total[1] / total[0]:.1f} |")
    print(f"{differ} of {len(expected)} items differ ({len(items)} here); centered accuracies differ by {apart:.1e} at most")
    sys.exit((differ > 0 or len(items) != len(expected) or apart > 1e-6) and args.precision == "f32")


main()
