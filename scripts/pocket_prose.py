#!/usr/bin/env python3
"""Clean text for pipelines/pocket.yaml from the shared data: train.jsonl and held_out.jsonl (text, source).

usage: pocket_prose.py SHARED_DATA OUT_DIR

WikiText-2 sections, PubMedQA abstracts, and the prose lines of the 500 DCLM documents (lines that end as a sentence and hold no word
that clutter has). Data of the evaluation tasks is not used. Every tenth article of the second file, every tenth abstract and the last 50
documents are held out. Standard library only.
"""

import json
import pathlib
import re
import sys

CLUTTER = re.compile(r"(?i)cookie|copyright|©|rights reserved|subscribe|sign up|log ?in|click|posted|comment|privacy|read more|share|"
                     r"permalink|javascript|newsletter|follow us|advert")
SECTION = 2500
LEAST = 300


def wikitext(path, hold_out):
    """Sections of about SECTION characters; lines with unknown words are left out."""
    article, lines = 0, []

    def section():
        text = "\n".join(lines)
        lines.clear()
        if len(text) > LEAST:
            yield text, hold_out and article % 10 == 9

    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if re.match(r"^= [^=].* =$", line):
            yield from section()
            article += 1
        if line and "<unk>" not in line:
            lines.append(line)
        if sum(map(len, lines)) > SECTION:
            yield from section()
    yield from section()


def prose_lines(text):
    """The document's paragraphs of running text."""
    lines = [line.strip() for line in text.split("\n")]
    return "\n\n".join(x for x in lines if len(x) >= 80 and re.search(r'[.!?"”]$', x) and not CLUTTER.search(x))[:6000]


def rows(data):
    for name in ("wikitext2_a.txt", "wikitext2_b.txt"):
        for text, held in wikitext(data / "prose" / name, name.endswith("b.txt")):
            yield text, "wikitext", held
    for i, line in enumerate((data / "prose/pubmed.jsonl").read_text(encoding="utf-8").splitlines()):
        yield json.loads(line)["text"].removeprefix("Context: "), "pubmed", i % 10 == 9
    for i, line in enumerate((data / "dclm/low_score_500.jsonl").read_text(encoding="utf-8").splitlines()):
        text = prose_lines(json.loads(line)["text"])
        if len(text) > LEAST:
            yield text, "dclm", i >= 450


def main():
    data, out = map(pathlib.Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "train.jsonl", "w", encoding="utf-8") as train, open(out / "held_out.jsonl", "w", encoding="utf-8") as held_out:
        for text, source, held in rows(data):
            file = held_out if held else train
            file.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")


main()
