"""The command evaluator: it scores what the native one scores, and nothing that a command does stops or spoils a run."""

import json
import pathlib
import socket
import sys

import h5py
import numpy as np
import pytest
import tools

EVALUATOR = pathlib.Path(__file__).with_name("vit_evaluator.py")
FOLDERS = f"nps-merge-{socket.gethostname()}-*"


@pytest.fixture
def shared(tmp_path):
    """Where models are handed over; nothing may be left there."""
    folder = tmp_path / "shared"
    folder.mkdir()
    yield folder
    assert tools.wait_for(lambda: not list(folder.iterdir())), list(folder.iterdir())


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """16 samples of each task."""
    path = tmp_path_factory.mktemp("few") / "calibration.h5"
    with h5py.File(tools.SMALL_SEARCH / "calibration.h5") as source, h5py.File(path, "w") as target:
        for task in tools.SMALL_SEARCH_TASKS:
            for name in ("inputs", "labels"):
                target[f"{task}/{name}"] = source[task][name][:16]
    return path


def by_command(config, shared, timeout=30, fitness=None, **behaviour):
    words = [sys.executable, str(EVALUATOR), json.dumps(behaviour)]
    more = {"evaluator": "command", "command": words, "timeout": timeout, "directory": str(shared), **(fitness or {})}
    return {**config, "fitness": {**config["fitness"], **more}}


def one_generation(few, population=4, **search):
    """The base, two models, then the start, and a generation of candidates for each of them."""
    return tools.small_search(few, stages=["prune"], generations=1, population=population, **search)


def history(path, search):
    with h5py.File(path) as file:
        group = file[f"search/{search}"]
        return {name: group[name][:] for name in ("genome", "generation", "candidate", "correct", "total", "nll_sum")}


def expect_same_search(path, native, searches):
    """The same candidates, counts and result; the nll differs by rounding."""
    assert tools.same_tensors(tools.read_model(path), tools.read_model(native))
    for name in searches:
        a, b = history(path, name), history(native, name)
        for key in a:
            if key == "nll_sum":
                assert np.allclose(a[key], b[key], rtol=1e-5, atol=1e-4), name
            else:
                assert np.array_equal(a[key], b[key]), (name, key)


# ---- the same as the native evaluator ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric,holdout", [("nll", 0), ("accuracy", 0.25)])
def test_scores_are_the_native_ones(metric, holdout, few, shared, tmp_path):
    config = one_generation(few)
    config["fitness"].update({"metric": metric, "holdout": holdout})
    tools.merge(config, tmp_path / "native.h5")
    found = set()
    for ranks, together in ((1, 0), (2, 0), (3, 3)):
        out = tmp_path / f"{ranks}.h5"
        config["search"]["ranks_per_model"] = together
        result = tools.merge(by_command(config, shared), out, ranks=ranks)
        assert "worst" not in result.err, result
        expect_same_search(out, tmp_path / "native.h5", ["prune/plain", "prune/blur"])
        found.add(str(sorted(tools.search_content(out).items())))
    assert len(found) == 1, "the number of ranks or groups changes bytes"


def test_scores_on_digits_vit(shared, tmp_path):
    """All of the family's calibration data."""
    names = tools.TASKS["digits-vit"][:2]
    config = tools.recipe("digits-vit", "nps", names=names, seed=3)
    data = str(tools.MODELS / "digits-vit/calibration.h5")
    config["nps"] = {"subspaces": 8, "density": 0.1}
    config["search"] = {"stages": ["joint"], "generations": 1, "population": 4, "max_evaluations": 6}
    config["fitness"] = {"metric": "accuracy", "holdout": 0, "tasks": [{"name": name, "data": data} for name in names]}
    tools.merge(config, tmp_path / "native.h5")
    for ranks in (1, 2):
        tools.merge(by_command(config, shared), tmp_path / f"{ranks}.h5", ranks=ranks)
        expect_same_search(tmp_path / f"{ranks}.h5", tmp_path / "native.h5", ["joint"])
