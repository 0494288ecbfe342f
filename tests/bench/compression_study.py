#!/usr/bin/env python3
"""Table for docs/compression.md: size and accuracy of compressed models, by density, beside other ways of storing them.

    pip install -r tests/bench/requirements-zstd.txt
    NPS_BUILDDIR=build/tests python tests/bench/compression_study.py [--family digits-vit] [--densities 0.02 0.05 0.1 0.2 0.4]

A size is what is stored of one fine-tuned model besides the base, head included, in the mean over the models, as a part of the
whole model (digits-vit in 32 bits, bytes-llama in 16 bits). Accuracies are nps-eval's on all calibration samples of the model's
own task, of models expanded to folders. The rows:

  archive            w = 1: the largest entries as they are; value_bits 8, as in all archives here
  archive, searched  the shipped config (configs/FAMILY-compression.yaml)
  archive, singular  partition: singular, searched likewise; density counts stored numbers
  TIES mask, zstd    per tensor the entries of largest magnitude: a bit mask and their values in 16 bits, each through zstd -19
  delta, zstd        the lossless difference of the stored bits, byte planes apart, through zstd -19
  1 bit              sign and mean magnitude of every matrix's difference (as BitDelta begins, without its training), all other
                     tensors' differences in 16 bits; through zstd -19
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import zstandard
from compression_table import stored

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests/python"), str(ROOT / "tools")]
import nps_merge  # noqa: E402
import tools  # noqa: E402

SEARCH = []  # settings of searches, from the command line
BITS = {"digits-vit": 32, "bytes-llama": 16}


def zstd(*arrays):
    pack = zstandard.ZstdCompressor(level=19)
    return sum(len(pack.compress(np.ascontiguousarray(a).tobytes())) for a in arrays)


def accuracy(family, model, task):
    found = tools.evaluate(model, "--data", tools.MODELS / family / "calibration.h5", "--group", task)
    return found["tasks"][task]["accuracy"]


class Family:
    def __init__(self, name):
        self.name, self.tasks, self.folder = name, tools.TASKS[name], tools.MODELS / name
        self.base = tools.read_model(self.folder / "base")
        self.tuned = {t: tools.read_model(self.folder / t) for t in self.tasks}
        self.full = {t: sum(x.size for _, x in m.values()) * BITS[name] // 8 for t, m in self.tuned.items()}
        self.scores = {t: accuracy(name, self.folder / t, t) for t in self.tasks}

    def delta(self, task, name):
        return tools.values(self.tuned[task][name]).astype(np.float32) - tools.values(self.base[name]).astype(np.float32)

    def heads(self, task):
        return {n: x for n, x in self.tuned[task].items() if n not in self.base}

    def score(self, task, updates):
        """Of the base with updates, written as a folder with the model's own head and config."""
        tensors = {**self.base, **self.heads(task)}
        for name, update in updates.items():
            kind, bits = self.base[name]
            sum_ = tools.values((kind, bits)).astype(np.float64) + update.astype(np.float64)
            tensors[name] = (kind, tools.narrow(sum_, kind))
        with tempfile.TemporaryDirectory() as out:
            tools.write_folder(out, tensors, json.loads((self.folder / task / "config.json").read_text()))
            return accuracy(self.name, out, task)


# ---- other ways --------------------------------------------------------------------------------------------------------


def head_bytes(family, task):
    return sum(x.nbytes for _, x in family.heads(task).values())


def lossless(family, task):
    """The difference of the bits as unsigned numbers, byte planes apart."""
    size = head_bytes(family, task)
    for name, (_, base) in family.base.items():
        unsigned = f"<u{base.dtype.itemsize}"
        bits = family.tuned[task][name][1].view(unsigned) - base.view(unsigned)
        size += zstd(bits.reshape(-1).view(np.uint8).reshape(bits.size, -1).T)
    return size, family.scores[task]


def ties_mask(family, task, density):
    size, updates = head_bytes(family, task), {}
    for name in family.base:
        delta = family.delta(task, name).reshape(-1)
        kept = np.sort(np.argsort(-np.abs(delta), kind="stable")[: int(density * delta.size)])
        mask, update = np.zeros(delta.size, bool), np.zeros(delta.size, np.float32)
        mask[kept] = True
        values = delta[kept].astype(np.float16)
        update[kept] = values
        size += zstd(np.packbits(mask), values.view(np.uint8).reshape(-1, 2).T)
        updates[name] = update.reshape(family.base[name][1].shape)
    return size, family.score(task, updates)


def one_bit(family, task):
    size, updates = head_bytes(family, task), {}
    for name, (_, base) in family.base.items():
        delta = family.delta(task, name)
        if base.ndim == 2:
            scale = np.abs(delta.astype(np.float64)).mean().astype(np.float32)
            updates[name] = np.where(delta > 0, scale, -scale)
            size += 4 + zstd(np.packbits(delta > 0))
        else:
            updates[name] = delta.astype(np.float16)
            size += zstd(updates[name].view(np.uint8).reshape(-1, 2).T)
    return size, family.score(task, updates)


# ---- what masks have in common -------------------------------------------------------------------------------------------


def entropy(p):
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


def mask_bits(family, density):
    """Bits an entry of a model's mask, in the mean: with the density of every tensor known; with, besides, the number of the
    models before that keep the entry. No code of masks takes less, unless it knows more."""
    names = sorted(family.base)
    tensor = np.repeat(np.arange(len(names)), [family.base[n][1].size for n in names])
    before, alone, shared = np.zeros(len(tensor), int), [], []
    for task in family.tasks:
        size = np.concatenate([np.abs(family.delta(task, n)).reshape(-1) for n in names])
        mask = np.zeros(len(size), bool)
        mask[np.argsort(-size, kind="stable")[: int(density * len(size))]] = True
        for found, group in ((alone, tensor), (shared, tensor * len(family.tasks) + before)):
            count, kept = np.bincount(group), np.bincount(group, mask)
            found.append((count * entropy(kept / np.maximum(count, 1))).sum() / len(size))
        before += mask
    return np.mean(alone), np.mean(shared)


# ---- archives ----------------------------------------------------------------------------------------------------------


def archive_sizes(path, tasks):
    """Bytes of every model: its datasets, and an equal part of all other bytes of the file."""
    with h5py.File(path) as f:
        own = {t: stored(f[f"models/{t}"]) + (stored(f[f"heads/{t}"]) if f"heads/{t}" in f else 0) for t in tasks}
        return {t: own[t] + (path.stat().st_size - sum(own.values())) / len(tasks) for t in tasks}


def archives(family, density, searched, settings):
    with tempfile.TemporaryDirectory() as folder:
        out, config = Path(folder) / "a.h5", ROOT / f"configs/{family.name}-compression.yaml"
        options = [f"nps.density={density}", *settings] + (SEARCH if searched else ["search.algorithm=none"])
        words = [word for option in options for word in ("--set", option)]
        done = tools.run(tools.MERGE, config, out, "--quiet", *words, limit=3600)
        assert done.code == 0, done
        sizes, scores = archive_sizes(out, family.tasks), {}
        for task in family.tasks:
            done = tools.run(tools.CONVERT, out, Path(folder) / task, "--task", task)
            assert done.code == 0, done
            scores[task] = accuracy(family.name, Path(folder) / task, task)
    return {t: (sizes[t], scores[t]) for t in family.tasks}


# ---- the table ---------------------------------------------------------------------------------------------------------


def show(family, what, density, found):
    count = len(family.tasks)
    part = sum(found[t][0] / family.full[t] for t in family.tasks) / count
    score = sum(found[t][1] for t in family.tasks) / count
    kept = score / (sum(family.scores.values()) / count)
    print(f"| {what} | {density} | {sum(found[t][0] for t in family.tasks) / count / 1000:.1f} | {100 * part:.2f} % | 1/{1 / part:.1f} | "
          f"{score:.4f} | {100 * kept:.2f} % |", flush=True)  # fmt: skip


def table(family, densities):
    print(f"\n{family.name}: {sum(family.full.values()) / len(family.tasks) / 1000:.1f} KB a model in {BITS[family.name]} bits, "
          f"accuracy {sum(family.scores.values()) / len(family.tasks):.4f}\n")  # fmt: skip
    print("| | density | KB a model | of the model | | accuracy | of the fine-tuned |\n|---|---|---|---|---|---|---|")
    each = lambda way, *more: {t: way(family, t, *more) for t in family.tasks}  # noqa: E731
    show(family, "delta, zstd", "", each(lossless))
    show(family, "1 bit", "", each(one_bit))
    for density in densities:
        show(family, "TIES mask, zstd", density, each(ties_mask, density))
        show(family, "archive", density, archives(family, density, False, []))
        show(family, "archive, searched", density, archives(family, density, True, []))
        show(family, "archive, singular, searched", density, archives(family, density, True, ["nps.partition=singular"]))
    print("\nbits an entry of the masks (w = 1): by themselves, and given how many of the models before keep the entry")
    for density in densities:
        print("density {}: {:.4f}, {:.4f}".format(density, *mask_bits(family, density)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=BITS, nargs="*", default=list(BITS))
    parser.add_argument("--densities", type=float, nargs="*", default=[0.02, 0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the shipped configs for searches")
    args = parser.parse_args()
    SEARCH.extend(args.set)
    for name in args.family:
        table(Family(name), args.densities)


if __name__ == "__main__":
    main()
