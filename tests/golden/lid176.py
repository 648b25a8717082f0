#!/usr/bin/env python3
"""What the fasttext package says of 1,000 real texts with lid.176.ftz: top-3 labels and probabilities -> lid176.json.

usage: lid176.py SHARED_DATA     (needs the fasttext or fasttext-wheel package)

Texts, in this order: the 500 documents of dclm/low_score_500.jsonl, then the sentences of the first 500 questions (many languages) of
core/bigbench_language_identification.jsonl. Only labels and probabilities are written.
"""

import json
import pathlib
import re
import sys

import fasttext


def texts(data):
    for line in (data / "dclm/low_score_500.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["text"]
    questions = (data / "core/bigbench_language_identification.jsonl").read_text(encoding="utf-8")
    for line in questions.splitlines()[:500]:
        yield re.search(r"Sentence: (.*?)\nA\. ", json.loads(line)["query"], flags=re.S).group(1)


def main():
    data = pathlib.Path(sys.argv[1])
    model = fasttext.load_model(str(data / "fasttext/lid.176.ftz"))
    rows = []
    for text in texts(data):
        # As DCLM passes a text. `f.predict` is what the package itself calls; its wrapper breaks with numpy 2.
        flat = " ".join(text.strip().splitlines())
        found = model.f.predict(flat + "\n", 3, 0.0, "strict")
        rows.append([[label.removeprefix("__label__"), round(p, 7)] for p, label in found])
    out = pathlib.Path(__file__).with_name("lid176.json")
    out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(len(rows), "texts")


if __name__ == "__main__":
    main()
