#!/usr/bin/env python3
"""Measure the search beside the same loop in NumPy and PyTorch, and print a table for docs/search.md.

nps-merge searches digits-vit (8 subspaces, density 0.1, 12 generations of 8 candidates: prune, then fuse) on one rank and
on two. Then a naive reference (the tests' NumPy oracle, a plain forward pass in PyTorch) goes through the very same
candidates on one core: builds each, scores it on the same samples. That gives the times, and a check of every score of the
history. The rate of matrix products is set beside plain sgemm on the same core (tests/bench/sgemm.c).

    NPS_BUILDDIR=build/tests $(tests/venv.sh --path)/bin/python tests/bench/search_bench.py
"""
import argparse
import json
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
from safetensors.numpy import load_file
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))
import oracle

FAMILY = ROOT / "examples/models/digits-vit"
TASKS = ["plain", "rot90", "invert", "shift", "noise", "parity", "lefthalf", "blur"]
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
}  # fmt: skip


def make_config():
    data = str(FAMILY / "calibration.h5")
    return {
        "merge_method": "nps", "base_model": str(FAMILY / "base"), "seed": 1, "dtype": "float32",
        "models": [{"model": str(FAMILY / task)} for task in TASKS],
        "nps": {"subspaces": 8, "density": 0.1},
        "search": {"stages": ["prune", "fuse"], "variables": ["weight"], "generations": 12, "population": 8,
                   "final": "best"},
        "fitness": {"metric": "accuracy", "objective": "mean", "holdout": 0,
                    "tasks": [{"name": task, "data": data} for task in TASKS]},
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
    """The loop that a researcher writes: rebuild, selection and forward pass for every candidate, in NumPy and PyTorch."""

    def __init__(self):
        self.base = load_file(FAMILY / "base/model.safetensors")
        self.names = sorted(self.base)
        self.flat_base = self.flat(self.base)
        self.models = {task: load_file(FAMILY / task / "model.safetensors") for task in TASKS}
        self.tau = {task: self.flat(model) - self.flat_base for task, model in self.models.items()}
        self.config = json.loads((FAMILY / "base/config.json").read_text())

    def flat(self, tensors):
        return np.concatenate([tensors[name].reshape(-1) for name in self.names])

    def score(self, vector, task):
        """(accuracy, nll) of a model on a task's samples."""
        sizes = np.cumsum([self.base[name].size for name in self.names])[:-1]
        parts = zip(self.names, np.split(vector.astype(np.float32), sizes))
        tensors = {name: torch.from_numpy(part.reshape(self.base[name].shape)) for name, part in parts}
        with h5py.File(FAMILY / "calibration.h5") as file, torch.no_grad():
            inputs, labels = (torch.from_numpy(file[task][name][:]) for name in ("inputs", "labels"))
            head = [torch.from_numpy(self.models[task][f"classifier.{name}"]) for name in ("weight", "bias")]
            logits = functional.linear(vit(tensors, self.config, inputs), *head)
            accuracy = (logits.argmax(1) == labels).float().mean()
            return float(accuracy), float(functional.cross_entropy(logits, labels.long()))

    def pruned(self, task, weights, density):
        return oracle.nps_pruned(self.tau[task], weights, np.abs(weights), density)[0]

    def prune(self, task, weights, density):
        return self.flat_base + self.pruned(task, weights, density)

    def fuse(self, weights, lambdas, density):
        return oracle.nps(self.flat_base, [self.pruned(task, weights[task], density) for task in TASKS], lambdas)


def vit(tensors, config, x):
    """The class token's features [samples][hidden] of a vision transformer; its tensors have Hugging Face's names."""
    hidden, heads, eps = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]

    def linear(x, name):
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, (hidden,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    def attention(x, name):
        q, k, v = (linear(x, f"{name}.attention.{part}").unflatten(2, (heads, -1)).transpose(1, 2)
                   for part in ("query", "key", "value"))  # fmt: skip
        shares = torch.softmax(q @ k.transpose(2, 3) / (hidden // heads) ** 0.5, 3)
        return linear((shares @ v).transpose(1, 2).flatten(2), f"{name}.output.dense")

    name, step = "vit.embeddings.patch_embeddings.projection", config["patch_size"]
    x = functional.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=step).flatten(2).transpose(1, 2)
    x = torch.cat([tensors["vit.embeddings.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + tensors["vit.embeddings.position_embeddings"]
    for layer in range(config["num_hidden_layers"]):
        name = f"vit.encoder.layer.{layer}"
        x = x + attention(norm(x, f"{name}.layernorm_before"), f"{name}.attention")
        inner = functional.gelu(linear(norm(x, f"{name}.layernorm_after"), f"{name}.intermediate.dense"))
        x = x + linear(inner, f"{name}.output.dense")
    return norm(x, "vit.layernorm")[:, 0]


def texts(values):
    return [v.decode() if isinstance(v, bytes) else v for v in values]


def replay(reference, out, density, limit):
    """Go through the history; seconds, evaluations, what part of all scored samples that was, and the largest differences
    of accuracy (samples) and nll."""
    weights, seconds, evaluations, samples, nll = {}, 0.0, 0, 0, 0.0
    scored, all_samples = 0, 0
    with h5py.File(out) as file:
        stages = [f"prune/{task}" for task in TASKS] + ["fuse"]
        for stage in stages:
            group = file[f"search/{stage}"]
            genomes, names = group["genome"][:], texts(group.attrs["tasks"])
            all_samples += group["total"][:].sum()
            scored += group["total"][: limit or None].sum()
            for row in range(len(genomes))[: limit or None]:
                begin = time.perf_counter()
                if stage == "fuse":
                    columns = texts(group.attrs["columns"])
                    lambdas = [genomes[row][columns.index(f"lambda[{task}]")] for task in TASKS]
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
    parser.add_argument("--limit", type=int, default=0, help="replay only so many candidates of each search")
    options = parser.parse_args()
    build = Path(os.environ.get("NPS_BUILDDIR", ROOT / "build/tests"))
    reference = Reference()
    config = make_config()
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
