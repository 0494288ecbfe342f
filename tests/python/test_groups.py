"""Matrices that no rank can hold alone are merged by groups of ranks."""

import re

import numpy as np
import pytest
import tools

METHODS = {"tsv_m": {}, "iso_c": {}, "iso_cts": {}, "knots": {"density": 0.4}, "opcm": {}}
ROWS, COLUMNS = 500, 2200


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and two models with one matrix larger than all else together."""
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(3)
    shapes = {"large": (ROWS, COLUMNS), "small": (40, 30), "tall": (70, 20), "bias": (50,)}
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    for model in ("base", "x", "y"):
        move = {n: 0 if model == "base" else 0.01 * random.standard_normal(s) for n, s in shapes.items()}
        tools.write_folder(folder / model, {n: ("F32", (base[n] + move[n]).astype(np.float32)) for n in shapes})
    return folder


def config(folder, method, memory=None):
    limit = {"resources": {"memory_per_rank": f"{memory}MiB"}} if memory else {}
    return {"merge_method": method, "base_model": str(folder / "base"), "dtype": "float32", "out_dtype": "float32",
            "parameters": METHODS[method], "models": [{"model": str(folder / m)} for m in ("x", "y")], **limit}  # fmt: skip


def least(folder, method, ranks, tmp_path):
    """MiB a rank that a merge on so many ranks asks for, and its message."""
    result = tools.merge(config(folder, method, 1), tmp_path / "no.h5", "--plan", "--ranks", ranks, code=2)
    return int(re.search(r"needs at least (\d+) MiB", result.err).group(1)), result.err


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_too_large_for_one_rank(method, models, tmp_path):
    alone, message = least(models, method, 1, tmp_path)
    shared, _ = least(models, method, 2, tmp_path)
    assert "tensor large needs at least" in message
    memory = (alone + shared) // 2
    assert shared + 5 <= memory <= alone - 5, "libraries take a little more or less from run to run"
    refused = tools.merge(config(models, method, memory), tmp_path / "no.h5", code=2).err
    assert "on 1 ranks, or 2 ranks that share it" in refused, refused
    if method == "iso_c":
        plan = tools.merge(config(models, method, memory), tmp_path / "no.h5", "--plan", "--ranks", 2)
        assert "groups of 2 ranks share 1 tensor" in plan.out and "balance: ranks work" in plan.out, plan
    tools.merge(config(models, method), tmp_path / "one.h5")
    one, base = tools.read_model(tmp_path / "one.h5"), tools.read_model(models / "base")
    for ranks in (2, 4) if method in ("iso_c", "knots") else (2,):
        out = tmp_path / f"{ranks}.h5"
        result = tools.merge(config(models, method, memory), out, "-v", ranks=ranks)
        assert re.search(r"groups of [24] ranks share 1 tensor", result.out), result
        assert "ranks busy: " in result.out + result.err, result
        merged = tools.read_model(out)
        for name, want in one.items():
            want, found = tools.values(want).astype(np.float64), tools.values(merged[name]).astype(np.float64)
            update = np.linalg.norm(want - tools.values(base[name]))
            assert np.linalg.norm(found - want) <= 1e-6 * update + 1e-6, (name, ranks)  # or a float32 is rounded otherwise
            if name != "large" and method != "opcm":  # opcm scales all tensors by a norm over all
                assert np.array_equal(want, found), f"{name}: a tensor of one rank"
        if method == "iso_c":
            tools.merge(config(models, method, memory), tmp_path / f"{ranks}-again.h5", ranks=ranks)
            again = tools.read_model(tmp_path / f"{ranks}-again.h5")
            assert all(np.array_equal(tools.values(again[n]), tools.values(merged[n])) for n in one), "the same ranks again"


def test_a_later_run_of_opcm_through_a_grid(models, tmp_path):
    """Another model merged into the output of an earlier run by two ranks that share its matrix."""
    both = config(models, "opcm")
    tools.merge(both, tmp_path / "both.h5")
    tools.merge({**both, "models": both["models"][:1]}, tmp_path / "first.h5")
    later = {**both, "base_model": str(tmp_path / "first.h5"), "models": both["models"][1:]}
    asked = [
        tools.merge({**later, "resources": {"memory_per_rank": "1MiB"}}, tmp_path / "no.h5", "--plan", "--ranks", n, code=2)
        for n in (1, 2)
    ]
    alone, shared = (int(re.search(r"needs at least (\d+) MiB", result.err).group(1)) for result in asked)
    assert shared + 5 <= (alone + shared) // 2 <= alone - 5
    limit = {"resources": {"memory_per_rank": f"{(alone + shared) // 2}MiB"}}
    result = tools.merge({**later, **limit}, tmp_path / "later.h5", "-v", ranks=2)
    assert "groups of 2 ranks share 1 tensor" in result.out, result
    base, found = tools.read_model(models / "base"), tools.read_model(tmp_path / "later.h5")
    for name, want in tools.read_model(tmp_path / "both.h5").items():
        want, have = (tools.values(stored).astype(np.float64) for stored in (want, found[name]))
        update = np.linalg.norm(want - tools.values(base[name]))
        assert np.linalg.norm(have - want) <= 1e-6 * update + 1e-6, name


def test_nothing_helps_where_the_libraries_do_not_fit(models, tmp_path):
    _, message = least(models, "iso_c", 1, tmp_path)
    assert "ranks that share it" not in message


def test_infinity_in_a_shared_matrix(models, tmp_path):
    folder = tmp_path / "bad"
    for model in ("base", "x", "y"):
        tools.copy_folder(models / model, folder / model)
    bad = {n: (t, v.copy()) for n, (t, v) in tools.read_model(folder / "y").items()}
    bad["large"][1][-1, 7] = np.inf
    tools.write_folder(folder / "y", bad)
    memory = (least(models, "iso_c", 1, tmp_path)[0] + least(models, "iso_c", 2, tmp_path)[0]) // 2
    for ranks in (2, 3):
        error = tools.merge(config(folder, "iso_c", memory), tmp_path / "no.h5", ranks=ranks, code=3).err
        assert error.count("tensor large holds infinity") == 1, error
