"""Reads a `packed` table with DuckDB and pyarrow and checks it against the documents that it was made of, tokenised by Hugging Face's tokenizers.

    python benches/peers/read_packed.py LOCATION PACKED_TABLE DOCUMENTS_TABLE [LOCATION PACKED_TABLE DOCUMENTS_TABLE …]

Every document, put together from its spans, must be its token ids and the end token; spans fill a context's length; the rest is padding. Exits with 1 where not.
"""

import json
import pathlib
import sys

import duckdb
import pyarrow.parquet
from tokenizers import Tokenizer


def check(location, packed, documents):
    table = pathlib.Path(location) / packed
    facts = json.loads((table / "_manifest.json").read_text())["params"]
    files = sorted(str(path) for path in table.glob("part-*.parquet"))
    texts = sorted(str(path) for path in (pathlib.Path(location) / documents).glob("part-*.parquet"))
    contexts, least, most, tokens = duckdb.sql(f"SELECT count(*), min(len(tokens)), max(len(tokens)), sum(length) FROM read_parquet({files})").fetchall()[0]
    tokenizer = Tokenizer.from_file(str(table / "_tokenizer.json"))
    tokenizer.no_truncation()
    wanted = {name: tokenizer.encode(text, add_special_tokens=False).ids + [facts["eot"]] for name, text in duckdb.sql(f"SELECT id, text FROM read_parquet({texts})").fetchall()}
    read = pyarrow.parquet.read_table(files)
    parts, faults = {}, 0
    for row in read.to_pylist():
        faults += sum(span["length"] for span in row["spans"]) != row["length"]
        faults += any(token != facts["pad"] for token in row["tokens"][row["length"]:])
        for span in row["spans"]:
            parts.setdefault(span["id"], []).append((span["start"], row["tokens"][span["offset"]:span["offset"] + span["length"]]))
    differ = sum([token for _, part in sorted(parts.pop(name, [])) for token in part] != ids for name, ids in wanted.items())
    good = not (faults or differ or parts) and read.num_rows == contexts == facts["contexts"] and tokens == sum(map(len, wanted.values()))
    print(f"{packed}: {read.schema.field('tokens').type}; {contexts} contexts of {least} to {most} tokens, {tokens} without padding; "
          f"{len(wanted)} documents, {differ} differ, {len(parts)} unknown; {faults} faulty contexts: {'good' if good else 'BAD'}")
    return good


def main():
    names = sys.argv[1:]
    if not names or len(names) % 3:
        sys.exit(__doc__)
    sys.exit(not all([check(*names[i:i + 3]) for i in range(0, len(names), 3)]))


main()
