#!/usr/bin/env python3
"""Compare CMA-ES (cmaes_bench.c) with PyPI's cma on test functions, and print a table for docs/search.md.

Same start, same step size, default population, 25 seeds; evaluations to 1e-8, counted at the end of the generation.

    pip install -r tests/bench/requirements-cma.txt
    NPS_BUILDDIR=build/tests python tests/bench/cmaes_bench.py
"""
import math
import os
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import cma
import numpy as np

BENCH = Path(os.environ.get("NPS_BUILDDIR", ".")) / "tests/bench/cmaes_bench"
TARGET, MOST = 1e-8, 1000000


def ellipsoid(condition):
    return lambda x: float(np.sum(condition ** (np.arange(len(x)) / (len(x) - 1)) * x**2))


FUNCTIONS = {
    "sphere": lambda x: float(np.sum(x**2)),
    "ellipsoid": ellipsoid(1e6),
    "ellipsoid3": ellipsoid(1e3),
    "cigar": lambda x: float(x[0] ** 2 + 1e6 * np.sum(x[1:] ** 2)),
    "powers": lambda x: float(np.sum(np.abs(x) ** (2 + 10 * np.arange(len(x)) / (len(x) - 1)))),
    "rosenbrock": lambda x: float(np.sum(100 * (x[:-1] ** 2 - x[1:]) ** 2 + (x[:-1] - 1) ** 2)),
    "rastrigin": lambda x: float(10 * len(x) + np.sum(x**2 - 10 * np.cos(2 * np.pi * x))),
}
START = {"rosenbrock": (0, 0.5)}  # others: 3, step size 2


def ours(name, n, population, seeds, kind):
    x0, sigma = START.get(name, (3, 2))
    words = [BENCH, name, n, population, seeds, kind, x0, sigma]
    return [int(line) for line in subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True).stdout.split()]


def theirs(name, n, population, seeds, kind):
    x0, sigma = START.get(name, (3, 2))
    found = []
    for seed in range(1, seeds + 1):
        options = {"seed": seed, "verbose": -9, "ftarget": TARGET, "maxfevals": MOST, "CMA_diagonal": kind == "sep"}
        if population:
            options["popsize"] = population
        es = cma.CMAEvolutionStrategy(n * [x0], sigma, options)
        while not es.stop():
            xs = es.ask()
            es.tell(xs, [FUNCTIONS[name](np.asarray(x)) for x in xs])
        found.append(es.result.evaluations if es.result.fbest <= TARGET else 0)
    return found


def median(runs):
    solved = [r for r in runs if r]
    return statistics.median(solved) if solved else math.nan


def main():
    warnings.simplefilter("ignore")
    print(f"| function | n | population | nps-merge | cma {cma.__version__} | ratio | solved |\n|---|---|---|---|---|---|---|")
    ratios = []
    cases = [(f, n, 0, 25, "full") for f in ("sphere", "ellipsoid", "cigar", "powers", "rosenbrock") for n in (5, 10, 20)]
    cases += [("rastrigin", 10, 200, 50, "full"), ("ellipsoid3", 100, 0, 25, "sep")]
    for name, n, population, seeds, kind in cases:
        a, b = ours(name, n, population, seeds, kind), theirs(name, n, population, seeds, kind)
        ratio = median(a) / median(b)
        if name != "rastrigin" and kind == "full":
            ratios.append(ratio)
        label = {"ellipsoid": "ellipsoid 1e6", "ellipsoid3": "ellipsoid 1e3, sep", "powers": "different powers"}.get(name, name)
        print(f"| {label} | {n} | {population or 4 + int(3 * math.log(n))} | {median(a):.0f} | {median(b):.0f} | {ratio:.2f} | "
              f"{sum(r > 0 for r in a)} and {sum(r > 0 for r in b)} of {seeds} |", flush=True)  # fmt: skip
    print(f"\nGeometric mean of the ratios (full covariance, without Rastrigin): {statistics.geometric_mean(ratios):.3f}")


if __name__ == "__main__":
    sys.exit(main())
