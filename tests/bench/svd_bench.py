#!/usr/bin/env python3
"""Table of times and errors of singular value decompositions for docs/svd.md, beside torch.linalg.svd, on one core,
in CPU time of one thread.

    NPS_BUILDDIR=build/tests python tests/bench/svd_bench.py [KIND:SHAPE …]     (for example task:1024x1024 random:768x3072)

Kinds: task, the difference of two bfloat16 models, bf16(W + D) − W: W normal with deviation 0.02, D of rank 32 with a
falling spectrum plus noise of 0.5 % of W, so that a tenth of the elements is 0 and the spectrum is a bulk with some large
values before it; random, independent normal numbers.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np
import torch

BENCH = Path(os.environ.get("NPS_BUILDDIR", "build/tests")) / "tests/bench/svd_bench"
LEADING, RUNS = 64, 3
DEFAULT = [f"{kind}:{shape}" for shape in ("1024x1024", "768x3072", "2048x2048") for kind in ("task", "random")]


def bf16(x):
    return torch.from_numpy(x.astype(np.float32)).bfloat16().float().numpy()


def make_matrix(kind, rows, columns):
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((rows, columns))
    if kind == "random":
        return noise.astype(np.float32)
    base, rank = bf16(0.02 * noise), 32
    left = 2e-4 * 0.85 ** np.arange(rank) * rng.standard_normal((rows, rank))
    delta = left @ rng.standard_normal((rank, columns)) + 1e-4 * rng.standard_normal((rows, columns))
    return bf16(base + delta) - base


def print_line(case, words):
    print(f"| {case} | " + " | ".join(words) + " |", flush=True)


def time_torch(case, a):
    exact = torch.linalg.svdvals(a.double())
    for dtype in (torch.float32, torch.float64):
        x, seconds = a.to(dtype), []
        for _ in range(RUNS):
            begin = time.process_time()
            u, s, v = torch.linalg.svd(x, full_matrices=False)
            seconds.append(time.process_time() - begin)
        error = (s.double() - exact).abs().max() / exact[0]
        residual = torch.linalg.norm(a.double() - u.double() * s.double() @ v.double()) / torch.linalg.norm(a.double())
        name = "torch " + str(dtype).removeprefix("torch.")
        print_line(case, [name, f"{statistics.median(seconds):.4f}", f"{error:.1e}", f"{residual:.1e}", "-", "-", "-"])


def main():
    os.sched_setaffinity(0, {0})
    torch.set_num_threads(1)
    print_line("matrix", ["method", "seconds", "error of σ/σ1", "residual", "orthogonality", "energy", "predicted"])
    print("|---" * 8 + "|")
    with tempfile.NamedTemporaryFile() as file:
        for case in sys.argv[1:] or DEFAULT:
            kind, shape = case.split(":")
            matrix = make_matrix(kind, *map(int, shape.split("x")))
            matrix.tofile(file.name)
            words = [str(BENCH), file.name, *shape.split("x"), str(LEADING), str(RUNS)]
            for line in subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
                print_line(case, line.split())
            time_torch(case, torch.from_numpy(matrix))


if __name__ == "__main__":
    main()
