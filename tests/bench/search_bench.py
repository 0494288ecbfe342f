#!/usr/bin/env python3
"""Measure the search beside the same loop in NumPy and PyTorch, and print a table for docs/search.md.

nps-merge searches digits-vit (8 subspaces, density 0.1, 12 generations of 8 candidates: prune, then fuse) on one rank and
on two. Then a naive reference (--oracle: a folder with reference.py) goes through the very same candidates on one core:
builds each, scores it on the same samples. That gives the times, and a check of every score of the history. The rate of
matrix products is set beside plain sgemm on the same core (tests/bench/sgemm.c).

    NPS_BUILDDIR=build/tests python tests/bench/search_bench.py --oracle DIR
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import h5py
import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
FAMILY = ROOT / "examples/models/digits-vit"
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
}  # fmt: skip


def make_config(tasks):
    data = str(FAMILY / "calibration.h5")
    return {
        "merge_method": "nps", "base_model": str(FAMILY / "base"), "seed": 1, "dtype": "float32",
        "models": [{"model": str(FAMILY / task)} for task in tasks],
        "nps": {"subspaces": 8, "density": 0.1},
        "search": {"stages": ["prune", "fuse"], "variables": ["weight"], "generations": 12, "population": 8,
                   "final": "best"},
        "fitness": {"metric": "accuracy", "objective": "mean", "holdout": 0,
                    "tasks": [{"name": task, "data": data} for task in tasks]},
    }  # fmt: skip


def search(build, config, folder, ranks):
    """Run the search; seconds, evaluations and rate of its own clock."""
    path, out = folder / "config.yaml", folder / f"{ranks}.h5"
    path.write_text(yaml.safe_dump(config))
    words = ["mpirun", "-np", str(ranks), "--bind-to", "none", build / "nps-merge", path, out, "--force", "--quiet"]
    subprocess.run([str(word) for word in words], check=True, env={**os.environ, **ENVIRONMENT})
    with h5py.File(out) as file:
        return out, dict(file["timing"].attrs)


def sgemm_rate(build):
    return float(subprocess.run([build / "tests/bench/sgemm"], check=True, capture_output=True, text=True).stdout)


def pin():
    os.sched_setaffinity(0, {0})
    torch.set_num_threads(1)


class Reference:
    """The loop that a researcher writes over the oracle: rebuild, selection and forward pass for every candidate."""

    def __init__(self, folder):
        sys.path.insert(0, str(folder))
        import reference

        self.reference, self.family = reference, reference.Family(str(FAMILY))
        self.tasks = self.family.tasks

    def score(self, vector, task):
        found = self.family.score(vector, "calibration", task)
        return found["accuracy"], found["nll"]

    def prune(self, task, weights, density):
        tau = self.family.tau[self.tasks.index(task)]
        return self.family.b0 + self.reference.nps_task(self.family, tau, weights, density)

    def fuse(self, weights, lambdas, density):
        total = np.zeros_like(self.family.b0, np.float64)
        for task, lam in zip(self.tasks, lambdas):
            q = self.reference.nps_task(self.family, self.family.tau[self.tasks.index(task)], weights[task], density)
            total += lam * q.astype(np.float64)
        return self.family.b0 + total


def texts(values):
    return [v.decode() if isinstance(v, bytes) else v for v in values]


def replay(reference, out, density, limit):
    """Go through the history; seconds, evaluations, what part of all scored samples that was, and the largest differences
    of accuracy (samples) and nll."""
    weights, seconds, evaluations, samples, nll = {}, 0.0, 0, 0, 0.0
    scored, all_samples = 0, 0
    with h5py.File(out) as file:
        stages = [f"prune/{task}" for task in reference.tasks] + ["fuse"]
        for stage in stages:
            group = file[f"search/{stage}"]
            genomes, names = group["genome"][:], texts(group.attrs["tasks"])
            all_samples += group["total"][:].sum()
            scored += group["total"][: limit or None].sum()
            for row in range(len(genomes))[: limit or None]:
                begin = time.perf_counter()
                if stage == "fuse":
                    columns = texts(group.attrs["columns"])
                    lambdas = [genomes[row][columns.index(f"lambda[{task}]")] for task in reference.tasks]
                    vector = reference.fuse(weights, lambdas, density)
                else:
                    vector = reference.prune(names[0], genomes[row], density)
                scores = [reference.score(vector, task) for task in names]
                seconds += time.perf_counter() - begin
                evaluations += 1
                for k, (accuracy, loss) in enumerate(scores):
                    total = int(group["total"][row, k])
                    samples = max(samples, abs(round(accuracy * total) - int(group["correct"][row, k])))
                    nll = max(nll, abs(loss - group["nll_sum"][row, k] / total))
            weights[names[0]] = genomes[int(group.attrs["best"])]
            print(f"{stage}: {evaluations} evaluations, {seconds:.1f} s", file=sys.stderr, flush=True)
    return seconds, evaluations, scored / all_samples, samples, nll


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", type=Path, required=True, help="folder with reference.py")
    parser.add_argument("--limit", type=int, default=0, help="replay only so many candidates of each search")
    options = parser.parse_args()
    build = Path(os.environ.get("NPS_BUILDDIR", ROOT / "build/tests"))
    reference = Reference(options.oracle)
    config = make_config(reference.tasks)
    sgemm = sgemm_rate(build)
    with tempfile.TemporaryDirectory() as folder:
        out, one = search(build, config, Path(folder), 1)
        sgemm = max(sgemm, sgemm_rate(build))
        _, two = search(build, config, Path(folder), 2)
        pin()
        seconds, evaluations, part, samples, nll = replay(reference, out, config["nps"]["density"], options.limit)
    ours = one["seconds"] * part
    print("| | |\n|---|---|")
    print(f"| evaluations | {int(one['evaluations'])} |")
    print(f"| one rank | {one['seconds']:.1f} s, {one['evaluations'] / one['seconds']:.1f} evaluations/s |")
    print(f"| two ranks | {two['seconds']:.1f} s, {one['seconds'] / two['seconds']:.2f} times as many a second |")
    print(f"| NumPy and PyTorch, one core | {seconds:.1f} s for {evaluations}: {seconds / ours:.2f} times as long |")
    print(f"| matrix products, one rank | {one['gflops_per_second']:.1f} GFLOP/s, "
          f"{100 * one['gflops_per_second'] / sgemm:.0f} % of sgemm's {sgemm:.1f} |")  # fmt: skip
    print(f"| largest difference of any score | {samples} samples, nll {nll:.1e} |")


if __name__ == "__main__":
    main()
