#!/usr/bin/env python3
"""Tables for docs/compression.md: what archives of an image family take, and how their models score.

    NPS_BUILDDIR=build/tests python tests/bench/compression_table.py [--family examples/models/digits-vit] [--density 0.1]

Nothing is searched: all subspaces have weight 1, so that the largest entries of every task vector are kept. Bytes are those
that HDF5 stores of the datasets of a model and its head; metadata are the file's other bytes. They are divided by 4 bytes an
element of the fine-tuned model. Accuracies are those of nps-eval on all calibration samples of the model's task.
"""
import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import h5py

BUILD = Path(os.environ.get("NPS_BUILDDIR", "build/tests"))
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OPENBLAS_NUM_THREADS": "1"}
PARTS = ["positions", "values", "scales", "blocks", "head"]


def run(program, *words):
    done = subprocess.run([str(BUILD / program), *map(str, words)], check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return done.stdout


def accuracy(family, model, task):
    found = run("nps-eval", model, "--data", family / "calibration.h5", "--group", task, "--json")
    return json.loads(found)["tasks"][task]["accuracy"]


def elements(model):
    return json.loads(run("nps-inspect", model, "--json"))["parameters"]


def compress(family, tasks, density, bits, out):
    config = {"merge_method": "nps", "base_model": str(family / "base"), "models": [{"model": str(family / t)} for t in tasks],
              "nps": {"application": "compression", "density": density}, "archive": {"value_bits": bits}}  # fmt: skip
    out.with_suffix(".yaml").write_text(json.dumps(config))
    run("nps-merge", out.with_suffix(".yaml"), out, "--quiet")


def stored(group):
    """Bytes of all datasets below a group."""
    sizes = []
    group.visititems(lambda _, x: sizes.append(x.id.get_storage_size()) if isinstance(x, h5py.Dataset) else None)
    return sum(sizes)


def measure(path, tasks):
    """Bytes of every model's parts, bytes of metadata, rounding of every model."""
    with h5py.File(path) as f:
        sizes = {t: [f[f"models/{t}/{part}"].id.get_storage_size() for part in PARTS[:-1]] for t in tasks}
        for task in tasks:
            sizes[task].append(stored(f[f"heads/{task}"]) if f"heads/{task}" in f else 0)
        return sizes, path.stat().st_size - stored(f), [float(f[f"models/{t}"].attrs["error"]) for t in tasks]


def row(*cells):
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def head(*cells):
    row(*cells)
    print("|" + "---|" * len(cells))


def show_tasks(family, tasks, sizes, full, tuned, scores):
    head("task", *PARTS, "bytes", "of 4 bytes an element", "fine-tuned", "from the archive")
    for t in tasks:
        bytes_ = sum(sizes[t])
        row(t, *sizes[t], bytes_, f"{100 * bytes_ / full[t]:.2f} %", f"{tuned[t]:.4f}", f"{scores[t]:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="examples/models/digits-vit")
    parser.add_argument("--density", type=float, default=0.1)
    args = parser.parse_args()
    family = Path(args.family).resolve()
    tasks = list(json.loads((family / "expected.json").read_text())["tasks"])
    full = {t: 4 * elements(family / t) for t in tasks}
    tuned = {t: accuracy(family, family / t, t) for t in tasks}
    rows, mean = [], lambda x: sum(x) / len(tasks)
    with tempfile.TemporaryDirectory() as folder:
        for bits in (16, 8, 4):
            out = Path(folder) / f"{bits}.h5"
            compress(family, tasks, args.density, bits, out)
            sizes, metadata, errors = measure(out, tasks)
            scores = {t: accuracy(family, f"{out}#{t}", t) for t in tasks}
            size = out.stat().st_size
            rows.append((bits, f"{mean(sum(s) for s in sizes.values()):.0f}", metadata, size, f"{100 * size / sum(full.values()):.2f} %",
                         f"{100 * max(errors):.2f} %", f"{mean(scores.values()):.4f}"))  # fmt: skip
            if bits == 8:
                print(f"density {args.density:g}, value_bits 8; a model has {full[tasks[0]]} bytes at 4 bytes an element\n")
                show_tasks(family, tasks, sizes, full, tuned, scores)
                print()
    head("value_bits", "bytes of a model, mean", "metadata", "file", "of all models at 4 bytes an element", "rounding, largest",
         "accuracy, mean")  # fmt: skip
    for cells in rows:
        row(*cells)
    row("fine-tuned", "", "", "", "", "", f"{mean(tuned.values()):.4f}")


if __name__ == "__main__":
    main()
