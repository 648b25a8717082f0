"""The `pack` benchmark done straightforwardly with tokenizers and numpy: read the table, encode_batch (its threads use all cores), append the
end token, cut into contexts of 2,049, shuffle, write Parquet. Prints megabytes of text per second.

    cargo bench --bench bench -- pack --keep=DIRECTORY && python benches/peers/pack.py DIRECTORY [repeats]
"""

import glob
import os
import sys
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

HOME, REPEATS = sys.argv[1], int((sys.argv + ["3"])[2])
CONTEXT, EOT, PAD, BATCH = 2049, 0, 50256, 2000
tokenizer = Tokenizer.from_file(f"{HOME}/packed/_tokenizer.json")


def run():
    parts, size = [], 0
    for file in sorted(glob.glob(f"{HOME}/texts/part-*.parquet")):
        stream = []
        for batch in pq.ParquetFile(file).iter_batches(BATCH, columns=["text"]):
            texts = batch.column(0).to_pylist()
            size += sum(len(text.encode()) for text in texts)
            encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
            for encoding in encode(texts, add_special_tokens=False):
                stream.append(np.array(encoding.ids + [EOT], dtype=np.uint16))
        stream = np.concatenate(stream)
        stream = np.concatenate([stream, np.full(-len(stream) % CONTEXT, PAD, np.uint16)])
        parts.append(stream.reshape(-1, CONTEXT))
    contexts = np.concatenate(parts)
    contexts = contexts[np.random.default_rng(1234).permutation(len(contexts))]
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(contexts.reshape(-1)), CONTEXT)
    pq.write_table(pa.table({"tokens": tokens}), f"{HOME}/peer.parquet", compression="zstd")
    return size, contexts


def main():
    rates = []
    for _ in range(REPEATS):
        begin, cpu = time.perf_counter(), time.process_time()
        size, contexts = run()
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        rates.append(size / 1e6 / seconds)
        print(f"tokenizers + numpy: {size / 1e6:.0f} MB in {seconds:.1f} s = {rates[-1]:.1f} MB/s, {cpu:.1f} s of CPU", flush=True)
    ours = [np.stack(pq.read_table(f, columns=["tokens"]).column(0).to_numpy()) for f in sorted(glob.glob(f"{HOME}/packed/part-*.parquet"))]
    ours = np.concatenate(ours)
    same = sorted(map(bytes, np.ascontiguousarray(contexts))) == sorted(map(bytes, np.ascontiguousarray(ours)))
    print(f"median {sorted(rates)[len(rates) // 2]:.1f} MB/s; same contexts as repro: {same}")


main()
