"""How the search for near copies grows with the number of pictures. Prints:

    python benchmarks/near_duplicates.py [--most=1000000]

Runs banding (input_pipeline/prepared/banding.py, used by `prepare --ray`) and the look-up of
neighbours (leaks.py, used by one process) on the same synthetic hashes, in one process: 64 random
bits; one hash in ten is a copy of another with up to 10 bits flipped. "candidates" are the pairs
that banding compares. Both must find the same pairs.
"""

import time

import numpy as np

from input_pipeline import cli
from input_pipeline.prepared import banding, leaks


def main() -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=10**6)
    args = parser.parse_args()
    print("| pictures | all pairs | blocks, tables | candidates | near pairs | banding | look-up |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    counts = [n for n in (10**3, 10**4, 10**5, 3 * 10**5, 10**6) if n <= args.most]
    took = []
    for count in counts:
        hashes = synthetic(count)
        tables = banding.tables(count, leaks.MAX_DISTANCE)
        started = time.perf_counter()
        parts = [banding.pairs_in(hashes, table, leaks.MAX_DISTANCE) for table in tables]
        pairs = np.concatenate(parts)
        banding_s = time.perf_counter() - started
        started = time.perf_counter()
        others = leaks.pairs_within(hashes, leaks.MAX_DISTANCE)
        look_up_s = time.perf_counter() - started
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        if not np.array_equal(pairs, others):
            raise AssertionError("the two do not find the same pairs")
        took.append(banding_s)
        print(
            f"| {count:,} | {count * (count - 1) / 2:.1e} | {blocks(count)}, {len(tables)} |"
            f" {sum(candidates(hashes, table[0]) for table in tables):.1e} | {len(pairs):,} |"
            f" {banding_s:.2f} s | {look_up_s:.2f} s |",
            flush=True,
        )
    for (a, a_s), (b, b_s) in zip(
        zip(counts, took, strict=True), list(zip(counts, took, strict=True))[1:], strict=False
    ):
        power = np.log(b_s / a_s) / np.log(b / a)
        print(f"from {a:,} to {b:,}: time grows as N^{power:.2f} (all pairs: N^2)")
    return 0


def blocks(count: int) -> int:
    return banding.best_blocks(count, leaks.MAX_DISTANCE)


def synthetic(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for i in range(1, count, 10):
        bits = rng.choice(64, rng.integers(0, 11), replace=False)
        hashes[i] = int(hashes[i - 1]) ^ sum(1 << int(bit) for bit in bits)
    return hashes


def candidates(hashes: np.ndarray, mask: int) -> int:
    sizes = np.unique(hashes & np.uint64(mask), return_counts=True)[1].astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())


if __name__ == "__main__":
    cli.run(main)
