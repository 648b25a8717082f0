#!/usr/bin/env python3
"""Measures a finished recycle run against its source documents, independently of the program (pyarrow only).

usage: rephraser.py RUN_DIR     (the `location` of pipelines/recycle.yaml)

Prints the row arithmetic of every table, and for the recycled documents: share that is not empty, share of output words (lower-cased, three
letters or more) that occur in the source, share of source words kept, over all documents and over those whose text kept its length.
"""

import glob
import json
import pathlib
import re
import sys

import pyarrow.parquet as pq

WORD = re.compile(r"[^\W\d_]{3,}")


def words(text):
    return WORD.findall(text.lower())


def table(run, name):
    manifest = json.loads((run / name / "_manifest.json").read_text())
    rows = []
    for file in manifest["files"]:
        rows += pq.read_table(run / name / file["path"]).to_pylist()
    return rows


def kept_share(source, output):
    """Share of source words (with multiplicity) that the output still has."""
    left = {}
    for word in output:
        left[word] = left.get(word, 0) + 1
    kept = 0
    for word in source:
        if left.get(word, 0) > 0:
            left[word] -= 1
            kept += 1
    return kept / max(len(source), 1)


def main():
    run = pathlib.Path(sys.argv[1])
    for path in sorted(glob.glob(str(run / "*" / "_manifest.json"))):
        manifest = json.loads(pathlib.Path(path).read_text())
        rows = manifest["rows"]
        balanced = rows["input"] + rows.get("created", 0) == rows["kept"] + rows["dropped"] + rows["failed"]
        print(f"{manifest['table']:12} {rows} {'adds up' if balanced else 'DOES NOT ADD UP'}")
    organic = {row["id"]: row["text"] for row in table(run, "organic")}
    recycled = {row["organic_id"]: row["text"] for row in table(run, "recycled")}
    nonempty = sum(1 for text in recycled.values() if text and text.strip())
    inside = total = 0
    shares = []
    for key, text in recycled.items():
        source, output = words(organic[key]), words(text or "")
        vocabulary = set(source)
        inside += sum(1 for word in output if word in vocabulary)
        total += len(output)
        shares.append((kept_share(source, output), key))
    shares.sort()
    print(f"documents {len(organic)}, non-empty {nonempty} = {nonempty / max(len(organic), 1):.4f}")
    print(f"output words in the source {inside}/{total} = {inside / max(total, 1):.4f}")
    mean = sum(share for share, _ in shares) / max(len(shares), 1)
    print(f"source words kept: mean {mean:.4f}, median {shares[len(shares) // 2][0]:.4f}, lowest {shares[0]}")


if __name__ == "__main__":
    main()
