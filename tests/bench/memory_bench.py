#!/usr/bin/env python3
"""Measure the memory of a search whose models lie on 1, 2 and 4 ranks, and print a table for docs/performance.md.

    make_checkpoints.py /data/1b --shape 1b --models 2
    memory_bench.py /data/1b [--build build] [--ranks 1 2 4] [--samples 2] [--tokens 17]

A transfer search of two candidates for each fine-tuned model, scored on a few random tokens. For each number of ranks the
table has the largest share of the models (stored width), the memory that the plan predicts, and the largest resident memory
of any rank, less what a rank has that does nothing but start (libraries, MPI).
"""
import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import yaml

ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def watch(words):
    """Run a program as a rank of mpirun, and tell its largest resident memory."""
    code = subprocess.run(words).returncode
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"peak {os.environ['OMPI_COMM_WORLD_RANK']} {peak}", flush=True)
    sys.exit(code)


def peaks(ranks, words):
    """Bytes of every rank."""
    found = subprocess.run(["mpirun", "-np", str(ranks), "--bind-to", "none", sys.executable, __file__, "--watch", *map(str, words)],
                           check=True, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}).stdout
    return [1024 * int(kib) for kib in re.findall(r"^peak \d+ (\d+)", found, re.M)]


def samples(folder, path, names, count, tokens):
    vocabulary = yaml.safe_load((folder / "base/config.json").read_text())["vocab_size"]
    random = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        for name in names:
            file[f"{name}/input_ids"] = random.integers(0, vocabulary, (count, tokens)).astype(np.int32)


def config_of(folder, data, names):
    return {
        "merge_method": "nps", "base_model": str(folder / "base"), "models": [{"model": str(folder / name)} for name in names],
        "nps": {"subspaces": 8, "density": 0.1, "application": "transfer"},
        "search": {"stages": ["prune"], "generations": 1, "max_evaluations": 2, "final": "best"},
        "fitness": {"metric": "nll", "holdout": 0, "batch": 1, "tasks": [{"name": name, "data": str(data)} for name in names]},
        "dtype": "bfloat16",
    }  # fmt: skip


def sizes(text):
    return [float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) ([KMG]?i?B)\b", text)]


def plan(build, config, out, ranks):
    """The largest share of the models, and the most memory of a rank."""
    words = [build / "nps-merge", config, out, "--plan", "--ranks", str(ranks), "--set", f"search.ranks_per_model={ranks}"]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    most = sizes(next(line for line in text.splitlines() if line.startswith("memory while scoring")))[0]
    shares = [sizes(line)[0] for line in text.splitlines() if "of a group:" in line]
    return max(shares) if shares else None, most


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=17)
    parser.add_argument("--scratch", type=Path, help="folder for the outputs")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "base")
    stored = [sum(f.stat().st_size for f in (folder / name).glob("*.safetensors")) for name in ["base", *names]]
    print("| ranks a model | largest share of the models | predicted | largest rank, measured | less start | over the share |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        scratch = Path(scratch)
        samples(folder, scratch / "data.h5", names, arguments.samples, arguments.tokens)
        config = scratch / "config.yaml"
        config.write_text(yaml.safe_dump(config_of(folder, scratch / "data.h5", names)))
        out = scratch / "{name}.h5"
        for ranks in arguments.ranks:
            share, predicted = plan(arguments.build, config, out, ranks)
            share = share or sum(stored)
            start = max(peaks(ranks, [arguments.build / "nps-merge", config, out, "--check"]))
            options = ["--quiet", "--force", "--set", f"search.ranks_per_model={ranks}"]
            most = max(peaks(ranks, [arguments.build / "nps-merge", config, out, *options]))
            over = (most - start) / share - 1
            print(f"| {ranks} | {share / 1e9:.3f} GB | {predicted / 1e9:.3f} GB | {most / 1e9:.3f} GB | {(most - start) / 1e9:.3f} GB "
                  f"| {100 * over:.1f} % |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        watch(sys.argv[2:])
    main()
