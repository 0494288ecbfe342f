#!/usr/bin/env python3
"""Which search generalises? Ranks searches on samples that they did not see, then opens the test data once.

Every search runs twice, on the even and on the odd half of digits-vit's calibration samples, and what it finds is scored on
the other half (the tasks are made of the same images in the same order: an image is in one half for all of them). Looked at
after 6 and after 12 generations: the best candidate, CMA-ES's mean, and the average of its means. The winner is surest to be
better than its start: it has the largest gain of held-out accuracy, in the mean over tasks and halves, in units of that
gain's standard error. Only then test.h5 is read: for the winner with seeds 1 to 5, a quarter of the calibration samples held
out, as it is by default: its start, what the search found, and what the program makes of it (the start, unless the held-out
samples show a gain beyond doubt).

    NPS_BUILDDIR=build/tests python tests/bench/search_study.py [--only 'NAME;…'] [--no-test] [--cache DIR]

With --cache, what was searched and scored is kept in a folder and not done again.
"""
import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import h5py
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
FAMILY = ROOT / "examples/models/digits-vit"
BUILD = Path(os.environ.get("NPS_BUILDDIR", ROOT / "build/tests"))
TASKS = ["plain", "rot90", "invert", "shift", "noise", "parity", "lefthalf", "blur"]
HALVES, SEEDS, DENSITY, SUBSPACES = 2, range(1, 6), 0.2, 8
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OPENBLAS_NUM_THREADS": "1"}

# Name: keys of search and of fitness.
ACCURACY, NLL = {"metric": "accuracy"}, {"metric": "nll"}
SEARCHES = {
    "joint, by accuracy, σ 0.1": ({"stages": ["joint"], "sigma": 0.1}, ACCURACY),
    "joint, by accuracy, σ 0.3": ({"stages": ["joint"], "sigma": 0.3}, ACCURACY),
    "joint, by nll, σ 0.1": ({"stages": ["joint"], "sigma": 0.1}, NLL),
}
GENERATIONS = 6, 12


def run(words):
    return subprocess.run([str(w) for w in words], check=True, env=ENVIRONMENT, text=True, capture_output=True).stdout


def texts(values):
    return [v.decode() if isinstance(v, bytes) else v for v in values]


def name_of(*what):
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


# ---- running the programs ----


def merge(config, out):
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    part = out.with_name("part-" + out.name)
    run([BUILD / "nps-merge", path, part, "--force", "--quiet"])
    part.rename(out)


def config_of(found=None):
    models = [{"model": str(FAMILY / t), "name": t} for t in TASKS]
    config = {"merge_method": "nps", "base_model": str(FAMILY / "base"), "models": models, "dtype": "float32",
              "nps": {"subspaces": SUBSPACES, "density": DENSITY}}  # fmt: skip
    if found:
        for model, value in zip(models, found["lambda"]):
            model["parameters"] = {"weight": float(value)}
        config["nps"]["weights"] = {t: [float(x) for x in row] for t, row in zip(TASKS, found["weight"])}
    return config


def searched(name, data, seed, folder, generations=max(GENERATIONS), holdout=0, final="best"):
    """The merged file of a search on `data`."""
    search, fitness = SEARCHES[name]
    search = {"variables": ["weight"], "generations": generations, "final": final, **search}
    fitness = {"objective": "mean", "holdout": holdout, **fitness, "tasks": [{"name": t, "data": str(data)} for t in TASKS]}
    out = folder / f"search-{name_of(DENSITY, data.name, search, fitness['metric'], holdout, seed)}.h5"
    if not out.exists():
        merge({**config_of(), "search": search, "fitness": fitness, "seed": seed}, out)
    return out


def score(found, data, folder):
    """[tasks][accuracy, nll] of what was found."""
    kept = folder / f"score-{name_of(DENSITY, found['lambda'].tolist(), found['weight'].tolist(), data.name)}.npy"
    if not kept.exists():
        model = folder / "scored.h5"
        merge(config_of(found), model)
        heads = [word for t in TASKS for word in ("--head", f"{t}={FAMILY / t}")]
        tasks = json.loads(run([BUILD / "nps-eval", model, "--data", data, "--json", *heads]))["tasks"]
        np.save(kept, [[tasks[t]["accuracy"], tasks[t]["nll"]] for t in TASKS])
    return np.load(kept)


# ---- reading histories ----


class History:
    """The last search of a merged file; earlier ones have given it its weights."""

    def __init__(self, out, metric):
        with h5py.File(out) as file:
            self.given = {"lambda": np.ones(len(TASKS)), "weight": np.ones((len(TASKS), SUBSPACES))}
            for i, task in enumerate(TASKS if "prune" in file["search"] else []):
                group = file[f"search/prune/{task}"]
                self.given["weight"][i] = group["genome"][int(group.attrs["best"])]
            group = file["search/fuse" if "fuse" in file["search"] else "search/joint"]
            self.columns, self.start = texts(group.attrs["columns"]), int(group.attrs["start"])
            self.chosen = int(group.attrs["best"])
            self.genome, self.generation = group["genome"][:], group["generation"][:]
            self.candidate = group["candidate"][:]
            accuracy, nll = (group["correct"] / group["total"][:]).mean(1), (group["nll_sum"] / group["total"][:]).mean(1)
        keys = (nll, -accuracy) if metric == "accuracy" else (-accuracy, nll)
        self.order = np.lexsort(keys)

    def rows(self, wanted):
        """Rows for which `wanted` holds, best first."""
        return [row for row in self.order if self.candidate[row] >= 0 and wanted(self.generation[row])]

    def mean(self, generation):
        """CMA-ES's mean after a generation: the better half of its candidates, weighed."""
        rows = self.rows(lambda g: g == generation)
        half = len(rows) // 2
        weights = np.log((len(rows) + 1) / 2) - np.log(np.arange(1, half + 1))
        return weights / weights.sum() @ self.genome[rows[:half]]

    def put(self, genome):
        found = {key: values.copy() for key, values in self.given.items()}
        for column, value in zip(self.columns, genome):
            kind, index = column.rstrip("]").split("[")
            if kind == "lambda":
                found[kind][TASKS.index(index)] = value
            else:
                found[kind][:, int(index)] = value
        return found

    def results(self):
        """What a search gives: {(generations, result): found}"""
        found = {(0, "start"): self.genome[self.start]}
        for last in GENERATIONS:
            means = [self.mean(g) for g in range(1, min(last, self.generation.max()) + 1)]
            found[last, "best"] = self.genome[self.rows(lambda g: g <= last)[0]]
            found[last, "mean"], found[last, "average"] = means[-1], np.mean(means, axis=0)
        return {key: self.put(genome) for key, genome in found.items()}


# ---- the study ----


def make_half(k, folder):
    """Calibration data without the samples of a half, and those samples."""
    paths = folder / f"seen-{k}.h5", folder / f"held-{k}.h5"
    with h5py.File(FAMILY / "calibration.h5") as source:
        for path, held in zip(paths, (False, True)):
            with h5py.File(path, "w") as target:
                for task in source:
                    keep = (np.arange(len(source[task]["labels"])) % HALVES == k) == held
                    for name in ("inputs", "labels"):
                        target[f"{task}/{name}"] = source[task][name][:][keep]
    return paths


def study(names, folder):
    """{(search, generations, result): [halves × tasks][accuracy, nll]} on samples that the search did not see"""
    halves = [make_half(k, folder) for k in range(HALVES)]
    held = {}
    for name in names:
        for seen, other in halves:
            results = History(searched(name, seen, 1, folder), SEARCHES[name][1]["metric"]).results()
            for key, result in results.items():
                held.setdefault((name, *key), []).append(score(result, other, folder))
    return {key: np.concatenate(scores) for key, scores in held.items()}


def gain(key, held):
    """Of held-out accuracy over the search's start, and its standard error, over tasks and halves."""
    gains = held[key][:, 0] - held[key[0], 0, "start"][:, 0]
    return gains.mean(), gains.std(ddof=1) / np.sqrt(len(gains))


def sureness(key, held):
    mean, error = gain(key, held)
    return mean / error if error > 0 else 0


def print_table(held):
    print("| search | generations | result | held-out accuracy | gain over its start | held-out nll |")
    print("|---|---|---|---|---|---|")
    for key in held:
        accuracy, nll = held[key].mean(0)
        words = "{:+.4f} ± {:.4f}".format(*gain(key, held)) if key[1] > 0 else ""
        print(f"| {key[0]} | {key[1]} | {key[2]} | {accuracy:.4f} | {words} | {nll:.4f} |", flush=True)


def test_winner(winner, folder):
    name, generations, result = winner
    final = {key: [] for key in ("start", "found", "chosen")}
    for seed in SEEDS:
        out = searched(name, FAMILY / "calibration.h5", seed, folder, generations, holdout=0.25, final=result)
        history = History(out, SEARCHES[name][1]["metric"])
        found = history.results()
        chosen = history.put(history.genome[history.chosen])
        rows = {"start": found[0, "start"], "found": found[generations, result], "chosen": chosen}
        for key, row in rows.items():
            final[key].append(score(row, FAMILY / "test.h5", folder)[:, 0].mean())
        print(f"seed {seed}: test accuracy " + ", ".join(f"{key} {values[-1]:.4f}" for key, values in final.items()), flush=True)
    print("mean: test accuracy " + ", ".join(f"{key} {np.mean(values):.4f}" for key, values in final.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of searches, separated by ';'")
    parser.add_argument("--no-test", action="store_true", help="only the ranking")
    parser.add_argument("--cache", type=Path, help="folder to keep results in")
    options = parser.parse_args()
    names = options.only.split(";") if options.only else list(SEARCHES)
    place = contextlib.nullcontext(options.cache) if options.cache else tempfile.TemporaryDirectory()
    with place as folder:
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        held = study(names, folder)
        winner = max((key for key in held if key[1] > 0), key=lambda key: sureness(key, held))
        print(f"Chosen on held-out samples: {winner[0]}, {winner[1]} generations, result: {winner[2]}\n", flush=True)
        print_table(held)
        if not options.no_test:
            print()
            test_winner(winner, folder)


if __name__ == "__main__":
    main()
