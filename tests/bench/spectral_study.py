#!/usr/bin/env python3
"""Spectral searches on digits-vit: against truncation by rank, and which of them generalises.

Part 1, at one density and so at one stored size: truncation of every τ_i by rank (the program's rule with w = a = 1, and the
same rank for every matrix, each with the best of the common factors 0.1 … 1.0 of λ) beside searches, all on the calibration
samples.

Part 2 ranks configurations: each is searched on three quarters of the calibration samples and scored on the fourth, four times
over (fold k holds out the samples i with i mod 4 = k). The winner is the configuration and choice of the result with the best held-out accuracy, of equals
the better nll. Only then test.h5 is
read: for a table of all, searched once more on all calibration samples, and for the winner with seeds 1 to 5.

    NPS_BUILDDIR=build/tests python tests/bench/spectral_study.py [--part 1|2] [--only 'NAME;…'] [--no-test] [--cache DIR]
"""
import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import yaml
from search_study import BUILD, FAMILY, TASKS, run, texts

CALIBRATION, TEST = FAMILY / "calibration.h5", FAMILY / "test.h5"
FOLDS = 4
FINALS = {"best": None, "mean": -1, "average": -2}
FACTORS = [round(0.1 * i, 1) for i in range(1, 11)]

# Searches at one stored size: (nps, search, fitness).
AT_DENSITY = {
    "prune, fuse": ({}, {"stages": ["prune", "fuse"], "generations": 20}, {}),
}

START = {"start": {"weight": 1.5}, "generations": 25, "population": 10}
ALL = {"of": "sum", "density": 1.0}
SEARCHES = {
    "sum, 8 bands": (ALL, START, {}),
    "sum, 8 bands, by nll": (ALL, START, {"metric": "nll"}),
    "sum, 4 bands": ({**ALL, "subspaces": 4}, START, {}),
}  # fmt: skip
FIXED = {
    "iso_c, alpha 1.5": {"merge_method": "iso_c", "parameters": {"alpha": 1.5}},
    "tsv_m": {"merge_method": "tsv_m"},
}


def config_of(nps, search=None, fitness=None, data=None, seed=1, lambdas=None):
    models = [{"model": str(FAMILY / t), "name": t} for t in TASKS]
    for model, value in zip(models, lambdas if lambdas is not None else []):
        model["parameters"] = {"weight": float(value)}
    config = {"merge_method": "nps", "base_model": str(FAMILY / "base"), "models": models, "dtype": "float32", "seed": seed,
              "nps": {"partition": "singular", **nps}}  # fmt: skip
    if search:
        config["search"] = {"variables": ["weight"], "sigma": 0.3, "final": "best", **search}
        config["fitness"] = {"metric": "accuracy", "holdout": 0, **fitness, "tasks": [{"name": t, "data": str(data)} for t in TASKS]}
    return config


def merge(config, out):
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    run([BUILD / "nps-merge", path, out, "--force", "--quiet"])


def score(model, data):
    """[tasks][accuracy, nll]"""
    heads = [word for t in TASKS for word in ("--head", f"{t}={FAMILY / t}")]
    tasks = json.loads(run([BUILD / "nps-eval", model, "--data", data, "--json", *heads]))["tasks"]
    return np.array([[tasks[t]["accuracy"], tasks[t]["nll"]] for t in TASKS])


def row_of(final, group):
    """The row of a history that a value of search.final names, or where it began."""
    if final == "start" or FINALS[final] is None:
        return int(group.attrs["start" if final == "start" else "best"])
    return int(np.flatnonzero(group["candidate"][:] == FINALS[final])[0])


def found_in(file, final):
    """(λ or None, weights with the rest's, priorities or None) [models] of the last search's result; earlier prune searches give
    their best."""
    bands = file["subspaces/weight"].shape[1]
    weights, priorities, lambdas = np.ones((len(TASKS), bands + 1)), np.ones((len(TASKS), bands)), np.ones(len(TASKS))
    kinds = set()
    groups = [(f"prune/{t}", [i]) for i, t in enumerate(TASKS)] if "prune" in file["search"] else []
    last = "fuse" if "fuse" in file["search"] else "joint"
    for path, models in [*groups, (last, list(range(len(TASKS))))]:
        group = file[f"search/{path}"]
        at = row_of(final, group) if path == last else int(group.attrs["best"])
        for column, value in zip(texts(group.attrs["columns"]), group["genome"][at]):
            kind, inner = column.rstrip("]").split("[")
            kinds.add(kind)
            if kind == "lambda":
                lambdas[TASKS.index(inner)] = value
            elif kind == "weight":
                weights[models, bands if inner == "rest" else int(inner)] = value
            else:
                priorities[models, int(inner)] = np.exp(value)
    return lambdas if "lambda" in kinds else None, weights, priorities if "log_priority" in kinds else None


def applied(nps, found):
    """The config that merges with what a search has found."""
    lambdas, weights, priorities = found
    rows = {"weights": weights, **({} if priorities is None else {"priorities": priorities})}
    given = {
        key: [float(x) for x in value[0]] if nps.get("of") == "sum" else {t: [float(x) for x in r] for t, r in zip(TASKS, value)}
        for key, value in rows.items()
    }
    return config_of({**nps, **given}, lambdas=lambdas)


def searched(name, data, seed, cache):
    """The merged file of a search on `data`."""
    nps, search, fitness = SEARCHES[name]
    out = cache / f"{name.replace(' ', '-')}-{data.stem}-{seed}.h5"
    if not out.exists():
        part = cache / f"part-{out.name}"
        merge(config_of(nps, search, fitness, data, seed), part)
        part.rename(out)
    return out


def results(name, data, scored, seed, cache, folder):
    """Scores on `scored` of the start of a search on `data` and of every choice of its result."""
    if name in FIXED:
        models = [{"model": str(FAMILY / t)} for t in TASKS]
        merge({"base_model": str(FAMILY / "base"), "models": models, "dtype": "float32", **FIXED[name]}, folder / "again.h5")
        return {"": score(folder / "again.h5", scored)}
    nps, found = SEARCHES[name][0], {}
    for final in ("start", *FINALS):
        with h5py.File(searched(name, data, seed, cache)) as file:
            config = applied(nps, found_in(file, final))
        merge(config, folder / "again.h5")
        found[final] = score(folder / "again.h5", scored)
    return found


# ---- part 1 ----


def equal_rank_model(density, factor, template, out):
    """The same rank for every matrix, as large as fits; biases and norms by magnitude; × factor."""
    base, models = read(FAMILY / "base"), [read(FAMILY / t) for t in TASKS]
    matrices = [n for n, x in base.items() if x.ndim == 2 and min(x.shape) > 1]
    budget = density * sum(base[n].size for n in matrices)
    rank = max(k for k in range(1, 4096) if sum(min(k, min(base[n].shape)) * sum(base[n].shape) for n in matrices) <= budget)
    merged = {n: x.astype(np.float64) for n, x in base.items()}
    for model in models:
        rest = [n for n in base if n not in matrices]
        flat = np.concatenate([np.abs(model[n] - base[n]).ravel() for n in rest])
        least = np.sort(flat)[::-1][int(density * flat.size) - 1]
        for n in base:
            tau = (model[n] - base[n]).astype(np.float64)
            if n in matrices:
                u, s, vt = np.linalg.svd(tau, full_matrices=False)
                merged[n] += factor * (u[:, :rank] * s[:rank]) @ vt[:rank]
            else:
                merged[n] += factor * np.where(np.abs(tau) >= least, tau, 0)
    out.write_bytes(template.read_bytes())
    with h5py.File(out, "r+") as file:
        for n, x in merged.items():
            file["tensors"][n][...] = x.astype(np.float32)
    return rank


def read(folder):
    from safetensors.numpy import load_file

    return {n: x for n, x in load_file(folder / "model.safetensors").items() if not n.startswith("classifier")}


def part_1(density, folder):
    print(f"| at density {density} | calibration accuracy | nll |\n|---|---|---|", flush=True)

    def show(name, found):
        print("| {} | {:.4f} | {:.4f} |".format(name, *found.mean(0)), flush=True)

    plain = {}
    for factor in FACTORS:
        merge(config_of({"density": density, "weights": [1.0] * 8}, lambdas=[factor] * len(TASKS)), folder / "plain.h5")
        plain[factor] = score(folder / "plain.h5", CALIBRATION)
    best = max(plain, key=lambda f: plain[f][:, 0].mean())
    show(f"truncation by rank, w = a = 1, λ = {best}", plain[best])
    equal, rank = {}, 0
    for factor in FACTORS:
        rank = equal_rank_model(density, factor, folder / "plain.h5", folder / "equal.h5")
        equal[factor] = score(folder / "equal.h5", CALIBRATION)
    best = max(equal, key=lambda f: equal[f][:, 0].mean())
    show(f"the same rank for every matrix ({rank}), λ = {best}", equal[best])
    for name, (nps, search, fitness) in AT_DENSITY.items():
        merge(config_of({"density": density, **nps}, search, fitness, CALIBRATION), folder / "searched.h5")
        with h5py.File(folder / "searched.h5") as file:
            elements = sum(d.size for d in file["tensors"].values())
            stored = file["subspaces/stored"][:].sum(1) / elements
        show(f"search: {name} (stored: {stored.max():.4f} of each τ at most)", score(folder / "searched.h5", CALIBRATION))


# ---- part 2 ----


def at_once(tasks, jobs, cache):
    """The results of many calls of results(), several at a time, each in a folder of its own."""

    def call(task):
        with tempfile.TemporaryDirectory() as folder:
            found = results(*task, cache, Path(folder))
        print(*task[:1], *task[3:], *(f"{k}: {v.mean(0)}" for k, v in found.items()), file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(call, tasks))


def make_fold(k, folder):
    """Calibration data without the samples of a fold, and those samples."""
    paths = folder / f"seen-{k}.h5", folder / f"held-{k}.h5"
    with h5py.File(CALIBRATION) as source:
        for path, keep_held in zip(paths, (False, True)):
            with h5py.File(path, "w") as target:
                for task in source:
                    keep = (np.arange(len(source[task]["labels"])) % FOLDS == k) == keep_held
                    for name in ("inputs", "labels"):
                        target[f"{task}/{name}"] = source[task][name][:][keep]
    return paths


def cross_validate(names, jobs, folder):
    """{(search, result): [folds × tasks][accuracy, nll] on held-out samples}"""
    folds = [make_fold(k, folder) for k in range(FOLDS)]
    found = at_once([(name, seen, held, 1) for name in names for seen, held in folds], jobs, folder)
    table = {}
    for i, name in enumerate(names):
        each = found[i * FOLDS : (i + 1) * FOLDS]
        for final in each[0]:
            table[name, final] = np.concatenate([e[final] for e in each])
    return table


def part_2(names, with_test, jobs, folder):
    table = cross_validate(names, jobs, folder)
    searched = [key for key in table if key[0] in SEARCHES and key[1] != "start"]
    winner = max(searched, key=lambda key: (table[key][:, 0].mean(), -table[key][:, 1].mean()))
    print(f"chosen by held-out scores: {winner[0]}, result: {winner[1]}\n", flush=True)
    tests = [(winner[0], CALIBRATION, TEST, seed) for seed in range(1, 6)] if with_test else []
    others = [(name, CALIBRATION, TEST, 1) for name in names if name != winner[0]] if with_test else []
    found = at_once(tests + others, jobs, folder)
    tested = {task[0]: f for task, f in zip(others, found[len(tests) :])}
    if with_test:
        tested[winner[0]] = found[0]
    print("| search | result | held-out accuracy | held-out nll |" + (" test accuracy | test nll |" if with_test else ""))
    print("|---|---|---|---|" + ("---|---|" if with_test else ""))
    for key in table:
        test = " {:.4f} | {:.4f} |".format(*tested[key[0]][key[1]].mean(0)) if with_test else ""
        print("| {} | {} | {:.4f} | {:.4f} |".format(*key, *table[key].mean(0)) + test)
    if with_test:
        scores = [f[winner[1]][:, 0].mean() for f in found[: len(tests)]]
        print(f"\n{winner[0]}, result: {winner[1]}, test accuracy with seeds 1 to 5: "
              + ", ".join(f"{score:.4f}" for score in scores) + f"; mean {np.mean(scores):.4f}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2), help="default: both")
    parser.add_argument("--density", type=float, default=0.1, help="of part 1")
    parser.add_argument("--only", help="names of searches of part 2, separated by ';'")
    parser.add_argument("--no-test", action="store_true", help="only the ranking")
    parser.add_argument("--cache", metavar="DIR", help="keep what part 2 has searched in a folder, and do not search it again")
    parser.add_argument("--jobs", type=int, default=1, help="searches of part 2 at a time")
    options = parser.parse_args()
    names = options.only.split(";") if options.only else [*FIXED, *SEARCHES]
    with tempfile.TemporaryDirectory() as name:
        name = options.cache or name
        if options.part != 2:
            part_1(options.density, Path(name))
        if options.part != 1:
            part_2(names, not options.no_test, options.jobs, Path(name))


if __name__ == "__main__":
    main()
