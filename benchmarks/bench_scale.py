"""How long a report of a million rows takes, and how much memory: rows of random numbers, no pictures.

    python benchmarks/bench_scale.py --rows 1000000

Eight methods on three tasks, as Table 1 of the STSL paper has them. Prints seconds and the peak memory of the process.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from stsl.bench.report import write_report
from stsl.bench.store import SCORES, Member, Store
from stsl.bench.suite import load_suite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="folder to keep; a temporary one when left out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        suite = load_suite("stsl-table1-ffhq")
        with Store(folder, create=True) as store:
            began = time.perf_counter()
            fill(store, args.rows)
            print(f"{args.rows} rows written in {time.perf_counter() - began:.0f} s")
            size = (folder / "results.sqlite").stat().st_size / 2**30
            began = time.perf_counter()
            write_report(store, suite, pictures=False, distances=False)
            print(f"report in {time.perf_counter() - began:.0f} s from a database of {size:.2f} GiB")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory of the process: {peak:.2f} GiB")


def fill(store: Store, rows: int) -> None:
    suite = load_suite("stsl-table1-ffhq")
    places = [(task, method) for task in suite.tasks for method in suite.methods]
    draws = np.random.default_rng(0)
    for start in range(0, rows, 10_000):
        numbers = draws.random((min(10_000, rows - start), len(SCORES)))
        with store.together():
            for row, values in enumerate(numbers.tolist(), start):
                (task, method), image = places[row % len(places)], f"image-{row // len(places):07}"
                scores = dict(zip(SCORES, values, strict=True))
                unit = {"key": f"{row:064x}", "status": "done", "png": "none.png", "image": image, "task": task}
                unit |= {"block": method.block, "side": 512, "prior": "simulated", "seed": 0, "code": "simulated"}
                store.put("units", unit | {"seconds": 1.0, "unet_samples": 1000, "nfe_paper": 1000} | scores)
                store.add_members([Member(suite.name, method.block, task, method.name, image, unit["key"])])


if __name__ == "__main__":
    main()
