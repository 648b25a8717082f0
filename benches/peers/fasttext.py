"""The `fasttext` benchmark done with the Python package (fasttext or fasttext-wheel): top-3 labels of the same texts, one process, one
thread. The bound function is called as the package's own `predict` does; its wrapper breaks with numpy 2.

    python benches/peers/fasttext.py SHARED_DATA
"""

import json
import pathlib
import sys
import time

sys.path = [entry for entry in sys.path if pathlib.Path(entry or ".").resolve() != pathlib.Path(__file__).parent.resolve()]
import fasttext  # noqa: E402  (this file has the package's name)


def main():
    data = pathlib.Path(sys.argv[1])
    texts = []
    for file, column in (("dclm/low_score_500.jsonl", "text"), ("core/bigbench_language_identification.jsonl", "query")):
        lines = (data / file).read_text(encoding="utf-8").splitlines()[:500]
        texts += [" ".join(json.loads(line)[column].strip().splitlines()) + "\n" for line in lines]
    model = fasttext.load_model(str(data / "fasttext/lid.176.ftz"))
    for name, run in (("predict", lambda: [model.f.predict(text, 3, 0.0, "strict") for text in texts]),
                      ("multilinePredict", lambda: model.f.multilinePredict(texts, 3, 0.0, "strict"))):
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            rates.append(len(texts) / (time.perf_counter() - start))
        print(f"fasttext {name}: {sorted(rates)[2]:.0f} documents/s", flush=True)


main()
