#!/usr/bin/env python3
"""Spectral searches on an example family: against truncation by rank, and which of them generalises.

Part 1, at one density and so at one stored size: truncation of every τ_i by rank (the program's rule with w = a = 1, and the
same rank for every matrix, each with the best of the common factors 0.1 … 1.0 of λ) beside searches, all on the calibration
samples.

Part 2 ranks configurations by cross-validation: of 4 folds (bytes-llama: 2), fold k holds out the samples i with i mod 4 = k;
each is searched on the others and scored on it. The winner is the configuration and choice of the result with the best
held-out score: digits-vit: accuracy, of equals the better nll; bytes-llama: nll. Only then test.h5 is read: for the winner,
searched on all calibration samples with several seeds, and for methods that search nothing.

    NPS_BUILDDIR=build/tests python tests/bench/spectral_study.py [--family NAME] [--part 1|2] [--only 'NAME;…'] [--no-test]
        [--cache DIR]
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import yaml
from safetensors import safe_open
from search_study import BUILD, ROOT, name_of, run, texts

FINALS = {"best": None, "mean": -1, "average": -2}
FACTORS = [round(0.1 * i, 1) for i in range(1, 11)]

ACCURACY, NLL = {"metric": "accuracy"}, {"metric": "nll"}


def of_sum(start, bands=8, **search):
    """A search over the spectrum of the sum, started at `start` times iso_c's flat one."""
    search = {"start": {"weight": start}, "generations": 25, "population": 10, **search}
    return {"of": "sum", "density": 1.0, "subspaces": bands}, search


class Family:
    """Models, how their searches are judged, and what is searched: {name: (nps, search, fitness)}."""

    def __init__(self, name, tasks, by, folds, seeds, at_density, searches, fixed):
        self.path = ROOT / "examples/models" / name
        self.calibration, self.test = self.path / "calibration.h5", self.path / "test.h5"
        self.tasks, self.by, self.folds, self.seeds = tasks, by, folds, seeds
        self.at_density, self.searches, self.fixed = at_density, searches, fixed

    def key(self, scores):
        """Of [tasks][accuracy, nll], the better the larger."""
        accuracy, nll = scores.mean(0)
        return (round(accuracy, 9), -nll) if self.by == "accuracy" else (-nll, accuracy)


DIGITS = Family(
    "digits-vit", ["plain", "rot90", "invert", "shift", "noise", "parity", "lefthalf", "blur"], "accuracy", 4, range(1, 6),
    {"prune, fuse": ({}, {"stages": ["prune", "fuse"], "generations": 20}, ACCURACY)},
    {
        "sum, 8 bands": (*of_sum(1.5), ACCURACY),
        "sum, 8 bands, by nll": (*of_sum(1.5), NLL),
        "sum, 4 bands": (*of_sum(1.5, bands=4), ACCURACY),
        "sum, 16 bands": (*of_sum(1.5, bands=16), ACCURACY),
        "each, 8 bands": ({}, {"generations": 25, "population": 10}, ACCURACY),
    },
    {"iso_c, alpha 1.5": {"merge_method": "iso_c", "parameters": {"alpha": 1.5}}, "tsv_m": {"merge_method": "tsv_m"}},
)  # fmt: skip
BYTES = Family(
    "bytes-llama", ["c", "python", "french", "german", "legal"], "nll", 2, range(1, 4),
    {"joint": ({}, {"stages": ["joint"], "generations": 15, "population": 10}, NLL)},
    {
        "sum, 8 bands": (*of_sum(1.0, generations=12), NLL),
        "sum, 4 bands": (*of_sum(1.0, bands=4, generations=12), NLL),
        "magnitude, density 0.2: prune, fuse":
            ({"partition": "magnitude", "density": 0.2}, {"stages": ["prune", "fuse"], "generations": 10, "population": 8}, NLL),
    },
    {"iso_c": {"merge_method": "iso_c"}, "tsv_m": {"merge_method": "tsv_m"}},
)  # fmt: skip
FAMILIES = {family.path.name: family for family in (DIGITS, BYTES)}
FAMILY = DIGITS


def config_of(nps, search=None, fitness=None, data=None, seed=1, lambdas=None):
    models = [{"model": str(FAMILY.path / t), "name": t} for t in FAMILY.tasks]
    for model, value in zip(models, lambdas if lambdas is not None else []):
        model["parameters"] = {"weight": float(value)}
    config = {"merge_method": "nps", "base_model": str(FAMILY.path / "base"), "models": models, "dtype": "float32", "seed": seed,
              "nps": {"partition": "singular", **nps}}  # fmt: skip
    if search:
        config["search"] = {"variables": ["weight"], "sigma": 0.3, "final": "best", **search}
        tasks = [{"name": t, "data": str(data)} for t in FAMILY.tasks]
        config["fitness"] = {"holdout": 0, **fitness, "tasks": tasks}
    return config


def merge(config, out):
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    run([BUILD / "nps-merge", path, out, "--force", "--quiet"])


def score(model, data):
    """[tasks][accuracy, nll]"""
    heads = [word for t in FAMILY.tasks for word in ("--head", f"{t}={FAMILY.path / t}")] if FAMILY is DIGITS else []
    tasks = json.loads(run([BUILD / "nps-eval", model, "--data", data, "--json", *heads]))["tasks"]
    return np.array([[tasks[t]["accuracy"], tasks[t]["nll"]] for t in FAMILY.tasks])


def row_of(final, group):
    """The row of a history that a value of search.final names, or where it began."""
    if final == "start" or FINALS[final] is None:
        return int(group.attrs["start" if final == "start" else "best"])
    return int(np.flatnonzero(group["candidate"][:] == FINALS[final])[0])


def found_in(file, final):
    """(λ or None, weights with the rest's, priorities or None) [models] of the last search's result; earlier prune searches give
    their best."""
    bands = file["subspaces/weight"].shape[1]
    models = len(FAMILY.tasks)
    weights, priorities, lambdas = np.ones((models, bands + 1)), np.ones((models, bands)), np.ones(models)
    kinds = set()
    groups = [(f"prune/{t}", [i]) for i, t in enumerate(FAMILY.tasks)] if "prune" in file["search"] else []
    last = "fuse" if "fuse" in file["search"] else "joint"
    for path, models in [*groups, (last, list(range(models)))]:
        group = file[f"search/{path}"]
        at = row_of(final, group) if path == last else int(group.attrs["best"])
        for column, value in zip(texts(group.attrs["columns"]), group["genome"][at]):
            kind, inner = column.rstrip("]").split("[")
            kinds.add(kind)
            if kind == "lambda":
                lambdas[FAMILY.tasks.index(inner)] = value
            elif kind == "weight":
                weights[models, bands if inner == "rest" else int(inner)] = value
            else:
                priorities[models, int(inner)] = np.exp(value)
    return lambdas if "lambda" in kinds else None, weights, priorities if "log_priority" in kinds else None


def applied(nps, found):
    """The config that merges with what a search has found."""
    lambdas, weights, priorities = found
    if nps.get("partition") == "magnitude":
        weights = weights[:, :-1]
    rows = {"weights": weights, **({} if priorities is None else {"priorities": priorities})}
    given = {key: dict(zip(FAMILY.tasks, value.tolist())) for key, value in rows.items()}
    if nps.get("of") == "sum":
        given = {key: value[FAMILY.tasks[0]] for key, value in given.items()}
    return config_of({**nps, **given}, lambdas=lambdas)


def searched(name, data, seed, cache):
    """The merged file of a search on `data`."""
    nps, search, fitness = FAMILY.searches[name]
    out = cache / f"{FAMILY.path.name}-{name_of(name, nps, search, fitness)}-{data.stem}-{seed}.h5"
    if not out.exists():
        part = cache / f"part-{out.name}"
        merge(config_of(nps, search, fitness, data, seed), part)
        part.rename(out)
    return out


def results(name, data, scored, seed, cache, folder):
    """Scores on `scored` of the start of a search on `data` and of every choice of its result."""
    if name in FAMILY.fixed:
        models = [{"model": str(FAMILY.path / t)} for t in FAMILY.tasks]
        config = {"base_model": str(FAMILY.path / "base"), "models": models, "dtype": "float32", **FAMILY.fixed[name]}
        merge(config, folder / "again.h5")
        return {"": score(folder / "again.h5", scored)}
    nps, found = FAMILY.searches[name][0], {}
    for final in ("start", *FINALS):
        with h5py.File(searched(name, data, seed, cache)) as file:
            config = applied(nps, found_in(file, final))
        merge(config, folder / "again.h5")
        found[final] = score(folder / "again.h5", scored)
    return found


# ---- part 1 ----


def equal_rank_model(density, factor, template, out):
    """The same rank for every matrix, as large as fits; biases and norms by magnitude; × factor."""
    base, models = read(FAMILY.path / "base"), [read(FAMILY.path / t) for t in FAMILY.tasks]
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
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors.update({n: file.get_tensor(n).float().numpy() for n in file.keys() if not n.startswith("classifier")})
    return tensors


def part_1(density, folder):
    print(f"| at density {density} | calibration accuracy | nll |\n|---|---|---|", flush=True)

    def show(name, found):
        print("| {} | {:.4f} | {:.4f} |".format(name, *found.mean(0)), flush=True)

    plain = {}
    for factor in FACTORS:
        merge(config_of({"density": density, "weights": [1.0] * 8}, lambdas=[factor] * len(FAMILY.tasks)), folder / "plain.h5")
        plain[factor] = score(folder / "plain.h5", FAMILY.calibration)
    best = max(plain, key=lambda f: FAMILY.key(plain[f]))
    show(f"truncation by rank, w = a = 1, λ = {best}", plain[best])
    equal, rank = {}, 0
    for factor in FACTORS:
        rank = equal_rank_model(density, factor, folder / "plain.h5", folder / "equal.h5")
        equal[factor] = score(folder / "equal.h5", FAMILY.calibration)
    best = max(equal, key=lambda f: FAMILY.key(equal[f]))
    show(f"the same rank for every matrix ({rank}), λ = {best}", equal[best])
    for name, (nps, search, fitness) in FAMILY.at_density.items():
        merge(config_of({"density": density, **nps}, search, fitness, FAMILY.calibration), folder / "searched.h5")
        with h5py.File(folder / "searched.h5") as file:
            elements = sum(d.size for d in file["tensors"].values())
            stored = file["subspaces/stored"][:].sum(1) / elements
        show(f"search: {name} (stored: {stored.max():.4f} of each τ at most)", score(folder / "searched.h5", FAMILY.calibration))


# ---- part 2 ----


def show_results(name, data, scored, seed, cache):
    with tempfile.TemporaryDirectory() as folder:
        found = results(name, data, scored, seed, cache, Path(folder))
    print(name, scored.name, seed, *(f"{k}: {v.mean(0).round(4)}" for k, v in found.items()), file=sys.stderr, flush=True)
    return found


def make_fold(k, folder):
    """Calibration data without the samples of a fold, and those samples."""
    paths = folder / f"{FAMILY.path.name}-seen-{k}.h5", folder / f"{FAMILY.path.name}-held-{k}.h5"
    with h5py.File(FAMILY.calibration) as source:
        for path, keep_held in zip(paths, (False, True)):
            with h5py.File(path, "w") as target:
                for task in source:
                    for name, values in source[task].items():
                        keep = (np.arange(len(values)) % FAMILY.folds == k) == keep_held
                        target[f"{task}/{name}"] = values[:][keep]
    return paths


def cross_validate(names, cache):
    """{(search, result): [folds × tasks][accuracy, nll] on held-out samples}"""
    table = {}
    for name in names:
        for k in range(FAMILY.folds):
            for final, scores in show_results(name, *make_fold(k, cache), 1, cache).items():
                table.setdefault((name, final), []).append(scores)
    return {key: np.concatenate(scores) for key, scores in table.items()}


def part_2(names, with_test, cache):
    table, tested = cross_validate(names, cache), {}
    winner = max((key for key in table if key[0] in FAMILY.searches and key[1] != "start"), key=lambda k: FAMILY.key(table[k]))
    print(f"Chosen by held-out scores: {winner[0]}, result: {winner[1]}\n", flush=True)
    if with_test:
        for name in names:
            if name in FAMILY.fixed:
                tested[name, ""] = show_results(name, None, FAMILY.test, 1, cache)[""]
        each = [show_results(winner[0], FAMILY.calibration, FAMILY.test, seed, cache) for seed in FAMILY.seeds]
        tested.update({(winner[0], final): scores for final, scores in each[0].items()})
    print("| search | result | held-out accuracy | held-out nll | test accuracy | test nll |\n|---|---|---|---|---|---|")
    for key in table:
        words = ["{:.4f} | {:.4f}".format(*scores[key].mean(0)) if key in scores else " | " for scores in (table, tested)]
        print(f"| {key[0]} | {key[1]} | " + " | ".join(words) + " |")
    if with_test:
        scores = [found[winner[1]].mean(0)[("accuracy", "nll").index(FAMILY.by)] for found in each]
        print(f"\n{winner[0]}, result: {winner[1]}, test {FAMILY.by} with seeds 1 to {len(scores)}: "
              + ", ".join(f"{score:.4f}" for score in scores) + f"; mean {np.mean(scores):.4f}")  # fmt: skip


def main():
    global FAMILY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="digits-vit")
    parser.add_argument("--part", type=int, choices=(1, 2), help="default: both")
    parser.add_argument("--density", type=float, default=0.1, help="of part 1")
    parser.add_argument("--only", help="names of searches of part 2, separated by ';'")
    parser.add_argument("--no-test", action="store_true", help="only the ranking")
    parser.add_argument("--cache", metavar="DIR", help="keep what part 2 has searched in a folder, and do not search it again")
    options = parser.parse_args()
    FAMILY = FAMILIES[options.family]
    names = options.only.split(";") if options.only else [*FAMILY.fixed, *FAMILY.searches]
    with tempfile.TemporaryDirectory() as name:
        cache = Path(options.cache or name)
        cache.mkdir(exist_ok=True)
        if options.part != 2:
            part_1(options.density, cache)
        if options.part != 1:
            part_2(names, not options.no_test, cache)


if __name__ == "__main__":
    main()
