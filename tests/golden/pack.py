"""Writes pack.json: what DCLM's packing rules make of 5,008 documents with the GPT-NeoX ranks, done with tiktoken and numpy, and tiktoken's
ids for awkward texts.

The rules (reference/repro.md section 6): per unit, tokens of each document and end token 0, blocks of 2,049 without overlap, the last one
filled up with 50256. The documents are in the shared data directory, not in the project; only hashes and counts are kept.
Run: REPRO_SHARED=../shared python tests/golden/pack.py
"""
import base64, hashlib, json, os, pathlib, random

import numpy as np
import tiktoken

HERE = pathlib.Path(__file__).parent
DATA = pathlib.Path(os.environ.get("REPRO_SHARED", HERE / "../../../shared")) / "data"
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
CONTEXT, EOT, PAD, UNIT = 2049, 0, 50256, 1000
BY_HAND = ["", " ", "<|endoftext|>", "a" * 5000, " " * 1030 + "x" + "\n" * 77, "\u65e5\u672c\u8a9e \U0001f600\u200d \u00a0\u3000x", "''s 'll'", "\r\n\t \u2028end "]


def documents():
    texts = list(BY_HAND)
    for name in ["dclm/low_score_500.jsonl", "prose/pubmed.jsonl"]:
        texts += [json.loads(line)["text"] for line in open(DATA / name, encoding="utf-8")]
    raw = [DATA / "prose/wikitext2_a.txt"] + sorted((DATA / "core").glob("*.jsonl"))
    for file in raw:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        texts += lines[: 1500 if file.suffix == ".txt" else 160]
    assert len(texts) >= 5008, len(texts)
    return texts[:5008]


def awkward():
    parts = ["a", "word", " ", "  ", "   ", "\n", "\r\n", "\t", "'", "'s", "'ll", "'l", "'re", "'v", "''", "\u00a0", "\u2003", "\u0085", "\u3000", "\u200b",
             "1", "12", "\u00bd", "\u2167", "\u00e9", "\u65e5\u672c", "\u0301", "\U0001f600", "\u0000", "--", "!?", "<|endoftext|>", "<|padding|>", "\U0001d7d8",
             "\U0010ffff", "_", "\u0e01\u0e33", "\ud55c\uad6d", "\u0915\u094d\u0937", "The", "ization", "=", "====", "."]
    draw = random.Random(7)
    return ["".join(draw.choice(parts) for _ in range(draw.randrange(1, 24))) for _ in range(300)]


def main():
    lines = [line.split() for line in open(DATA / "tokenizer/gpt_neox_20b.tiktoken", "rb")]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding("gpt_neox", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    texts = documents()
    units, contexts = [], []
    for start in range(0, len(texts), UNIT):
        stream = []
        for text in texts[start:start + UNIT]:
            stream += encoding.encode_ordinary(text) + [EOT]
        real = len(stream)
        stream += [PAD] * (-real % CONTEXT)
        stream = np.array(stream, dtype="<u2").reshape(-1, CONTEXT)
        units.append({"tokens": real, "contexts": len(stream), "md5": hashlib.md5(stream.tobytes()).hexdigest()})
        contexts += [row.tobytes() for row in stream]
    golden = {
        "documents": len(texts),
        "documents_md5": hashlib.md5("\0".join(texts).encode()).hexdigest(),
        "context": CONTEXT, "eot": EOT, "pad": PAD, "unit_rows": UNIT,
        "units": units,
        "sorted_contexts_md5": hashlib.md5(b"".join(sorted(contexts))).hexdigest(),
        "awkward": [{"text": text, "ids": encoding.encode_ordinary(text)} for text in awkward()],
    }
    (HERE / "pack.json").write_text(json.dumps(golden) + "\n")
    print(sum(u["tokens"] for u in units), "tokens,", len(contexts), "contexts")


main()
