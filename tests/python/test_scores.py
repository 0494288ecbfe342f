"""Spectral merges of the example models score what a reference program's merges score, task by task."""

import json
import pathlib

import pytest
import tools

EXPECTED = json.loads((pathlib.Path(__file__).parent / "expected/scores.json").read_text())


def settings(case):
    """Method and parameters of a case such as `iso_c alpha=1.5`."""
    method, *words = case.split()
    pairs = (word.split("=") for word in words)
    return method, {key: value if key == "mode" else float(value) for key, value in pairs}


@pytest.mark.parametrize("family", tools.TASKS)
@pytest.mark.parametrize("case", EXPECTED)
def test_correct_counts_are_the_reference_s(case, family, tmp_path):
    method, parameters = settings(case)
    folder = tools.MODELS / family
    tools.merge(tools.recipe(family, method, parameters), tmp_path / "merged.h5", ranks=2)
    heads = [f"{task}={folder / task}" for task in tools.TASKS[family]] if family == "digits-vit" else []
    options = [word for head in heads for word in ("--head", head)]
    found = tools.evaluate(tmp_path / "merged.h5", "--data", folder / "calibration.h5", *options, ranks=2)["tasks"]
    assert found.keys() == EXPECTED[case][family].keys()
    for task, (correct, total) in EXPECTED[case][family].items():
        assert found[task]["total"] == total
        assert abs(found[task]["correct"] - correct) <= 1, (task, found[task], correct)
