"""Compression with a search, of both families: what is kept of the fine-tuned models' accuracy, and in how many bytes.

The configs are those that are shipped, with fewer generations. Sizes are those of whole files, the base's reference, the
models' configs and all metadata included, in equal parts; scores are nps-eval's, of models expanded to folders.
"""

import json
import re

import h5py
import pytest
from tools import CONVERT, MODELS, ROOT, TASKS, evaluate, merge, read_model, run, same_tensors


def accuracy(family, model, task):
    data = MODELS / family / "calibration.h5"
    return evaluate(model, "--data", data, "--group", task, ranks=2)["tasks"][task]["accuracy"]


def compress(family, out, *settings):
    config = ROOT / f"configs/{family}-compression.yaml"
    merge(config, out, "--log", f"{out}.log", *(word for s in settings for word in ("--set", s)), ranks=2, limit=600)
    return next(e for e in map(json.loads, open(f"{out}.log")) if e["event"] == "scores")


def expand(family, out, folder):
    for task in TASKS[family]:
        assert run(CONVERT, out, folder / task, "--task", task, ranks=2).code == 0
    return {task: accuracy(family, folder / task, task) for task in TASKS[family]}


def mean(numbers):
    return sum(numbers) / len(numbers)


def fine_tuned(family):
    """The fine-tuned models' mean accuracy, by PyTorch."""
    scores = json.loads((MODELS / family / "expected.json").read_text())["tasks"]
    found = [scores[task]["cal"]["finetuned"] for task in TASKS[family]]
    return mean([x["accuracy"] if isinstance(x, dict) else x for x in found])


# family, generations, width of a number in the full model, least part of the accuracy, most part of the size
GOALS = [("digits-vit", 2, 4, 0.995, 1 / 20), ("bytes-llama", 1, 2, 0.98, 1 / 9)]


@pytest.mark.parametrize("family, generations, width, least, most", GOALS)
def test_models_keep_their_accuracy_in_a_fraction_of_their_size(family, generations, width, least, most, tmp_path):
    out, tasks = tmp_path / "a.h5", TASKS[family]
    told = compress(family, out, f"search.generations={generations}", "search.population=4")
    found = expand(family, out, tmp_path)
    assert mean(found.values()) >= least * fine_tuned(family)
    full = sum(width * x.size for task in tasks for _, x in read_model(MODELS / family / task).values())
    assert out.stat().st_size <= most * full
    with h5py.File(out) as f:
        for task in tasks:
            own = [x.id.get_storage_size() for group in ("models", "heads") if task in f.get(group, {}) for x in f[group][task].values()]
            elements = sum(x.size for _, x in read_model(MODELS / family / task).values())
            rest = (out.stat().st_size - sum_of_models(f)) / len(tasks)
            assert sum(own) + rest <= most * width * elements, task
    for row in told["tasks"]:
        parts = [row[part]["merged"]["accuracy"] for part in ("calibration", "held_out")]
        assert abs(0.75 * parts[0] + 0.25 * parts[1] - found[row["task"]]) < 1e-12


def sum_of_models(file):
    sizes = []
    for group in ("models", "heads"):
        if group in file:
            file[group].visititems(lambda _, x: sizes.append(x.id.get_storage_size()) if isinstance(x, h5py.Dataset) else None)
    return sum(sizes)


@pytest.mark.parametrize("settings", [[], ["archive.value_bits=4", "nps.density=0.4"], ["archive.value_bits=16", "nps.partition=singular"]])
def test_a_plan_predicts_what_is_stored(settings, tmp_path):
    config, words = ROOT / "configs/digits-vit-compression.yaml", [w for s in [*settings, "search.algorithm=none"] for w in ("--set", s)]
    told = merge(config, tmp_path / "a.h5", *words, ranks=2).out
    planned = merge(config, tmp_path / "b.h5", "--plan", "--ranks", "64", *words).out
    for task in TASKS["digits-vit"]:
        stored = float(re.search(rf"^{task} .* ([0-9.]+) KiB +1/", told, re.M)[1])
        assert abs(float(re.search(rf"archive: {task} takes about ([0-9.]+) KiB", planned)[1]) / stored - 1) < 0.05
