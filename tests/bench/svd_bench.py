#!/usr/bin/env python3
"""Table of times and errors of singular value decompositions for docs/svd.md, beside torch.linalg.svd, on one core.

    NPS_BUILDDIR=build/tests python tests/bench/svd_bench.py [SHAPE …]     (shapes: 1024x1024 768x3072 2048x2048)
"""
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import torch

BENCH = Path(os.environ.get("NPS_BUILDDIR", "build/tests")) / "tests/bench/svd_bench"
LEADING, RUNS = 64, 3


def torch_seconds(rows, columns):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    a = torch.randn(rows, columns)
    seconds = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        torch.linalg.svd(a, full_matrices=False)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main():
    os.sched_setaffinity(0, {0})
    print("| shape | method | seconds | error of σ | residual | orthogonality | energy |\n|---|---|---|---|---|---|---|")
    for shape in sys.argv[1:] or ["1024x1024", "768x3072", "2048x2048"]:
        rows, columns = map(int, shape.split("x"))
        words = [str(BENCH), str(rows), str(columns), str(LEADING), str(RUNS)]
        lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
        for line in lines:
            print(f"| {shape} | " + " | ".join(line.split()) + " |", flush=True)
        print(f"| {shape} | torch.linalg.svd, float32 | {torch_seconds(rows, columns):.4f} | | | | |", flush=True)


if __name__ == "__main__":
    main()
