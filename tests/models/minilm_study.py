#!/usr/bin/env python3
"""Merge the models of minilm_tune.py by several methods, choose on calibration data, and score once on test data.

    NPS_BUILDDIR=build/tests minilm_study.py FOLDER [--ranks N] [--only NAME]... [--no-test]

Of every method with a factor the best one on the calibration data is taken, by accuracy, equals by nll. The searches see the
calibration data alone. Prints every command, then a table of accuracies on the test data. What is done is kept in FOLDER and
not done again: a new start needs a folder without scores.json.
"""
import argparse
import json
import os
import shlex
import subprocess
from pathlib import Path

import h5py
import yaml

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("NPS_BUILDDIR", ROOT / "build/tests")).resolve()
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OPENBLAS_NUM_THREADS": "1"}

# Name of a row: (method, parameters, the one that is chosen, its values)
GRIDS = {
    "linear": ("linear", {"weight": 1}, None, [None]),
    "task_arithmetic": ("task_arithmetic", {"weight": 1}, "lambda", [0.2, 0.3, 0.4, 0.5, 0.6]),
    "ties": ("ties", {"weight": 1, "density": 0.2}, "lambda", [0.6, 0.8, 1.0, 1.3]),
    "dare_ties": ("dare_ties", {"weight": 1, "density": 0.5}, "lambda", [0.2, 0.4, 0.6, 0.8]),
    "tsv_m": ("tsv_m", {}, "alpha", [0.6, 0.8, 1.0, 1.3, 1.6]),
    "iso_c": ("iso_c", {}, "alpha", [1.0, 1.3, 1.6, 2.0, 2.5, 3.0]),
}
NPS = {"subspaces": 8, "density": 0.2}
SEARCHES = {
    "nps_fuse": {"stages": ["fuse"], "generations": 4, "population": 8, "final": "best"},
    "nps_prune_fuse": {"stages": ["prune", "fuse"], "generations": 6, "population": 8, "final": "best"},
    "nps_joint": {},
}
ARCHIVE = {"application": "compression", "density": 0.1}


def mean(score, key):
    return sum(task[key] for task in score.values()) / len(score)


class Study:
    def __init__(self, folder, ranks):
        self.folder, self.ranks = folder, ranks
        self.tasks = list(json.loads((folder / "texts/classes.json").read_text()))
        self.scores_file = folder / "scores.json"
        self.scores = json.loads(self.scores_file.read_text()) if self.scores_file.exists() else {}
        (folder / "configs").mkdir(exist_ok=True)

    def run(self, program, *words):
        words = ["mpirun", "-np", str(self.ranks), str(BUILD / program), *map(str, words)]
        print("$ " + shlex.join(words).replace(f"{BUILD}/", "").replace(f"{self.folder}/", ""), flush=True)
        result = subprocess.run(words, cwd=self.folder, env=ENVIRONMENT, text=True, capture_output=True)
        if result.returncode != 0:
            raise SystemExit(f"exit code {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout

    def config(self, method, parameters=None, **more):
        models = [{"model": f"../models/{task}"} for task in self.tasks]
        config = {"merge_method": method, "base_model": "../models/base", "models": models, "dtype": "float32"}
        return {**config, **({"parameters": parameters} if parameters else {}), **more}

    def merge(self, name, config):
        """The merged file, made where it is not there."""
        out, path = self.folder / f"{name}.h5", self.folder / f"configs/{name}.yaml"
        text = yaml.safe_dump(config, sort_keys=False)
        if not out.exists() or not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(self.run("nps-merge", f"configs/{name}.yaml", out.name, "--force"), flush=True)
        return out

    def score(self, model, data, tasks=None):
        """{task: {accuracy, nll}}, with the head of each task."""
        tasks, kept = tasks or self.tasks, self.scores.setdefault(f"{model} {data}", {})
        missing = [task for task in tasks if task not in kept]
        if missing:
            words = [w for task in missing for w in ("--group", task, "--head", f"{task}=models/{task}")]
            kept.update(json.loads(self.run("nps-eval", model, "--data", f"{data}.h5", "--json", *words))["tasks"])
            self.scores_file.write_text(json.dumps(self.scores, indent=1))
        return {task: kept[task] for task in tasks}

    # ---- rows ----

    def choose(self, name):
        """The best factor's model on the calibration data; the others are removed."""
        method, parameters, factor, values = GRIDS[name]
        best, found = None, {}
        for value in values:
            label = name if factor is None else f"{name}-{value}"
            if f"{label}.h5 calibration" not in self.scores:
                self.merge(label, self.config(method, {**parameters, **({factor: value} if factor else {})}))
            found[label] = score = self.score(f"{label}.h5", "calibration")
            print(f"{label}: calibration accuracy {mean(score, 'accuracy'):.4f}, nll {mean(score, 'nll'):.4f}", flush=True)
            key = (-mean(score, "accuracy"), mean(score, "nll"))
            best = min(best or (key, label, value), (key, label, value))
            for other in found:
                if other != best[1]:
                    (self.folder / f"{other}.h5").unlink(missing_ok=True)
        self.merge(best[1], self.config(method, {**parameters, **({factor: best[2]} if factor else {})}))
        return f"{best[1]}.h5", "" if factor is None else f"{factor} {best[2]}"

    def search(self, name):
        tasks = [{"name": task, "data": "../calibration.h5"} for task in self.tasks]
        holdout = {} if name == "nps_joint" else {"holdout": 0}
        search = {"nps": NPS, "seed": 1, "search": SEARCHES[name], "fitness": {**holdout, "tasks": tasks}}
        out = self.merge(name, self.config("nps", **search))
        return out.name, self.factors(out)

    def factors(self, out):
        """λ of the models, as the search has chosen them."""
        with h5py.File(out) as file:
            group = file["search/fuse" if "fuse" in file["search"] else "search/joint"]
            columns = [c.decode() if isinstance(c, bytes) else c for c in group.attrs["columns"]]
            genome = group["genome"][int(group.attrs["best"])]
        return "λ " + ", ".join(f"{v:.2f}" for c, v in zip(columns, genome) if c.startswith("lambda"))

    def own(self, model_of, data):
        """Every task scored on a model of its own."""
        return {task: self.score(model_of(task), data, [task])[task] for task in self.tasks}

    def rows(self, only):
        """[(name, what was chosen, a function of the data's name)]"""
        rows = [("base", "", lambda data: self.score("models/base", data)),
                ("fine-tuned, each for its task", "", lambda data: self.own(lambda t: f"models/{t}", data))]  # fmt: skip
        for task in self.tasks:
            rows.append((f"fine-tuned for {task}", "", lambda data, t=task: self.score(f"models/{t}", data)))
        for name in [*GRIDS, *SEARCHES]:
            if only and name not in only:
                continue
            model, chosen = self.choose(name) if name in GRIDS else self.search(name)
            rows.append((name, chosen, lambda data, m=model: self.score(m, data)))
        if not only or "compression" in only:
            self.merge("compression", self.config("nps", nps=ARCHIVE))
            rows.append(("compression, each for its task", "", lambda data: self.own(lambda t: f"compression.h5#{t}", data)))
        return rows

    def print_table(self, rows, data):
        print(f"\n{data} data\n\n| model | chosen | " + " | ".join(self.tasks) + " | mean accuracy | mean nll |")
        print("|" + "---|" * (len(self.tasks) + 4))
        for name, chosen, score in rows:
            found = score(data)
            cells = [found[task]["accuracy"] for task in self.tasks] + [mean(found, "accuracy")]
            cells = " | ".join(f"{cell:.4f}" for cell in cells)
            print(f"| {name} | {chosen} | {cells} | {mean(found, 'nll'):.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--only", action="append", help="only this row besides base and fine-tuned models")
    parser.add_argument("--no-test", action="store_true", help="the table of the calibration data instead")
    given = parser.parse_args()
    study = Study(given.folder.resolve(), given.ranks)
    rows = study.rows(given.only)
    study.print_table(rows, "calibration" if given.no_test else "test")


if __name__ == "__main__":
    main()
