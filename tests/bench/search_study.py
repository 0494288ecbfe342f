#!/usr/bin/env python3
"""Which search generalises? Ranks configurations on samples that their searches did not see, then opens the test data once.

Every configuration is searched on three quarters of digits-vit's calibration samples and scored on the fourth, four times
over (fold k holds out the samples i with i mod 4 = k: the tasks are made of the same images in the same order, so a fold
takes an image out of all of them). What counts is the held-out gain in accuracy over the search's own start, averaged over
tasks and folds, where it is more than twice its standard error over them. Where none is, no search is known to be better
than its start, and the winner is the search that returns its start when in doubt. Only then test.h5 is read: for a table of
all configurations, searched once more on all calibration samples, and for the winner with seeds 1 to 5. Nothing is chosen
from that table.

    NPS_BUILDDIR=build/tests python tests/bench/search_study.py [--density 0.1] [--only 'NAME;…'] [--no-test]
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
import yaml

ROOT = Path(__file__).resolve().parents[2]
FAMILY = ROOT / "examples/models/digits-vit"
BUILD = Path(os.environ.get("NPS_BUILDDIR", ROOT / "build/tests"))
TASKS = ["plain", "rot90", "invert", "shift", "noise", "parity", "lefthalf", "blur"]
FOLDS = 4
ENVIRONMENT = {
    **os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip

# Searches; each gives a candidate for every row of its history that `final` can name.
SEARCHES = {
    "fuse, sigma .3": ({"stages": ["fuse"], "sigma": 0.3, "generations": 20}, {}),
    "fuse, sigma .1": ({"stages": ["fuse"], "sigma": 0.1, "generations": 20}, {}),
    "fuse, sigma .1, by nll": ({"stages": ["fuse"], "sigma": 0.1, "generations": 20}, {"metric": "nll"}),
    "fuse, sigma .1, holdout .25": ({"stages": ["fuse"], "sigma": 0.1, "generations": 20}, {"holdout": 0.25}),
    "fuse, sigma .1, worst": ({"stages": ["fuse"], "sigma": 0.1, "generations": 20}, {"objective": "worst"}),
    "prune, fuse, sigma .3": ({"stages": ["prune", "fuse"], "sigma": 0.3, "generations": 20}, {}),
    "joint, sigma .3": ({"stages": ["joint"], "sigma": 0.3, "generations": 30}, {}),
    "joint, sigma .1": ({"stages": ["joint"], "sigma": 0.1, "generations": 20}, {}),
    "joint, sigma .3, by nll": ({"stages": ["joint"], "sigma": 0.3, "generations": 30}, {"metric": "nll"}),
    "joint, sigma .3, worst": ({"stages": ["joint"], "sigma": 0.3, "generations": 30}, {"objective": "worst"}),
    "joint, sigma .3, normalized": ({"stages": ["joint"], "sigma": 0.3, "generations": 30}, {"objective": "normalized"}),
    "joint, sigma .3, holdout .25": ({"stages": ["joint"], "sigma": 0.3, "generations": 30}, {"holdout": 0.25}),
    "joint, in doubt the start": ({"stages": ["joint"], "sigma": 0.3, "generations": 30, "final": "average"}, {"holdout": 0.25}),
    "joint of priorities": ({"stages": ["joint"], "sigma": 0.3, "generations": 30, "variables": ["density"]}, {}),
    "joint of both": ({"stages": ["joint"], "sigma": 0.3, "generations": 30, "variables": ["weight", "density"]}, {}),
    "joint, own weights": ({"stages": ["joint"], "sigma": 0.3, "generations": 30, "per_model": True}, {}),
}
DOUBTING = "joint, in doubt the start", "best"
FINALS = {"best": None, "mean": -1, "average": -2}


def run(words, **more):
    return subprocess.run([str(w) for w in words], check=True, env=ENVIRONMENT, text=True, capture_output=True, **more)


def config_of(data, density, search, fitness, seed, found=None):
    models = [{"model": str(FAMILY / t), "name": t} for t in TASKS]
    nps = {"subspaces": 8, "density": density}
    if found:
        lambdas, *given = found
        for model, value in zip(models, lambdas):
            model["parameters"] = {"weight": float(value)}
        for key, rows in zip(("weights", "priorities"), given):
            if rows is not None:
                nps[key] = {t: [float(x) for x in row] for t, row in zip(TASKS, rows)}
    config = {"merge_method": "nps", "base_model": str(FAMILY / "base"), "models": models, "nps": nps, "seed": seed,
              "dtype": "float32"}  # fmt: skip
    if search:
        config["search"] = {"variables": ["weight"], "final": "best", **search}
        config["fitness"] = {"metric": "accuracy", "objective": "mean", "holdout": 0, **fitness,
                             "tasks": [{"name": t, "data": str(data)} for t in TASKS]}  # fmt: skip
    return config


def merge(config, out):
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    run(["mpirun", "-np", 2, "--bind-to", "none", BUILD / "nps-merge", path, out, "--force", "--quiet"])


def score(model, data):
    """[tasks][accuracy, nll]"""
    heads = [word for t in TASKS for word in ("--head", f"{t}={FAMILY / t}")]
    found = run(["mpirun", "-np", 2, "--bind-to", "none", BUILD / "nps-eval", model, "--data", data, "--json", *heads])
    tasks = json.loads(found.stdout)["tasks"]
    return np.array([[tasks[t]["accuracy"], tasks[t]["nll"]] for t in TASKS])


def texts(values):
    return [v.decode() if isinstance(v, bytes) else v for v in values]


def genome(out, row):
    """λ [T], weights and, where they were searched, priorities [T][M] of a row of the last search; earlier prune searches
    give their best."""
    lambdas, weights, priorities = np.ones(len(TASKS)), np.ones((len(TASKS), 8)), np.ones((len(TASKS), 8))
    searched = set()
    with h5py.File(out) as file:
        groups = [(f"prune/{t}", [i]) for i, t in enumerate(TASKS)] if "prune" in file["search"] else []
        last = "fuse" if "fuse" in file["search"] else "joint"
        for path, models in groups + [(last, range(len(TASKS)))]:
            group = file[f"search/{path}"]
            at = row(group) if path == last else int(group.attrs["best"])
            for column, value in zip(texts(group.attrs["columns"]), group["genome"][at]):
                kind, inner = column.rstrip("]").split("[")
                searched.add(kind)
                *own, subspace = inner.split(",")
                if kind == "lambda":
                    lambdas[TASKS.index(inner)] = value
                else:
                    target = weights if kind == "weight" else priorities
                    rows = [TASKS.index(own[0])] if own else list(models)
                    target[rows, int(subspace)] = value if kind == "weight" else np.exp(value)
    return lambdas, weights, priorities if "log_priority" in searched else None


def row_of(final):
    """The row of a history that a value of `final` names."""

    def find(group):
        if final == "start":
            return int(group.attrs["start"])
        if FINALS[final] is None:
            return int(group.attrs["best"])
        return int(np.flatnonzero(group["candidate"][:] == FINALS[final])[0])

    return find


def results(name, data, scored, density, seed, folder):
    """Scores on `scored` of what a search on `data` began at and of every choice of its result."""
    search, fitness = SEARCHES[name]
    out = folder / "searched.h5"
    merge(config_of(data, density, search, fitness, seed), out)
    found = {}
    for final in ("start", *FINALS):
        again = folder / "again.h5"
        merge(config_of(data, density, None, None, seed, genome(out, row_of(final))), again)
        found[final] = score(again, scored)
    return found


def make_fold(k, folder):
    """Calibration data without the samples of a fold, and those samples."""
    paths = folder / f"seen-{k}.h5", folder / f"held-{k}.h5"
    with h5py.File(FAMILY / "calibration.h5") as source:
        for path, keep_held in zip(paths, (False, True)):
            with h5py.File(path, "w") as target:
                for task in source:
                    keep = (np.arange(len(source[task]["labels"])) % FOLDS == k) == keep_held
                    for name in ("inputs", "labels"):
                        target[f"{task}/{name}"] = source[task][name][:][keep]
    return paths


def cross_validate(names, density, folder):
    """{(search, result): [folds × tasks][accuracy, nll] on held-out samples}"""
    folds = [make_fold(k, folder) for k in range(FOLDS)]
    table = {}
    for name in names:
        each = [results(name, seen, held, density, 1, folder) for seen, held in folds]
        for final in ("start", *FINALS):
            table[name, final] = np.concatenate([e[final] for e in each])
            print(f"{name}, {final}: {table[name, final].mean(0)}", file=sys.stderr, flush=True)
    return table


def gain_of(table, name, final):
    """Held-out gain in accuracy over the search's start, and its standard error over folds and tasks."""
    gains = table[name, final][:, 0] - table[name, "start"][:, 0]
    return gains.mean(), gains.std(ddof=1) / np.sqrt(len(gains))


def winner_of(table):
    gains = {key: gain_of(table, *key) for key in table if key[1] != "start"}
    sure = {key: gain for key, (gain, error) in gains.items() if gain > 2 * error}
    return max(sure, key=sure.get) if sure else DOUBTING


def row(key, table):
    gain = "" if key[1] == "start" else "{:+.4f} ± {:.4f}".format(*gain_of(table, *key))
    return "| {} | {} | {:.4f} | {} | {:.4f} |".format(*key, table[key][:, 0].mean(), gain, table[key][:, 1].mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--only", help="names of searches, separated by ';'")
    parser.add_argument("--no-test", action="store_true", help="only the ranking")
    options = parser.parse_args()
    names = options.only.split(";") if options.only else list(SEARCHES)
    calibration, test = FAMILY / "calibration.h5", FAMILY / "test.h5"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = cross_validate(names, options.density, folder)
        winner = winner_of(table)
        print(f"density {options.density}; chosen by held-out scores: {winner[0]}, result: {winner[1]}\n", flush=True)
        print("| search | result | held-out accuracy | gain over the start | held-out nll |"
              + ("" if options.no_test else " test accuracy | test nll |"))  # fmt: skip
        print("|---|---|---|---|---|" + ("" if options.no_test else "---|---|"), flush=True)
        for search in names:
            found = {} if options.no_test else results(search, calibration, test, options.density, 1, folder)
            for final in ("start", *FINALS):
                tested = " {:.4f} | {:.4f} |".format(*found[final].mean(0)) if found else ""
                print(row((search, final), table) + tested, flush=True)
        if options.no_test:
            return
        each = [results(winner[0], calibration, test, options.density, seed, folder) for seed in range(1, 6)]
        scores = [e[winner[1]][:, 0].mean() for e in each]
        starts = [e["start"][:, 0].mean() for e in each]
        print(f"\n{winner[0]}, result: {winner[1]}, test accuracy with seeds 1 to 5: "
              + ", ".join(f"{score:.4f}" for score in scores)
              + f"; mean {np.mean(scores):.4f}, of its start {np.mean(starts):.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
