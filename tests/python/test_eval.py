"""nps-eval: what it prints, on any number of ranks, and what it says when model and data do not fit."""

import json

import h5py
import numpy as np
import pytest
import tools

FAMILY = tools.MODELS / "digits-vit"
DATA = FAMILY / "calibration.h5"
HEADS = [word for task in tools.TASKS["digits-vit"] for word in ("--head", f"{task}={FAMILY / task}")]


def evaluate(*arguments, ranks=0, code=0):
    result = tools.run(tools.EVAL, *arguments, ranks=ranks)
    assert result.code == code, result
    return result


def test_json_has_the_scores_and_their_averages():
    options = ("--group", "rot90", "--group", "plain", "--json")
    found = json.loads(evaluate(FAMILY / "plain", "--data", DATA, *options).out)
    assert list(found) == ["tasks", "average"]
    assert list(found["tasks"]) == ["rot90", "plain"], "the order asked for"
    plain = found["tasks"]["plain"]
    assert list(plain) == ["correct", "total", "accuracy", "nll"]
    assert (plain["correct"], plain["total"], plain["accuracy"]) == (189, 200, 0.945)
    assert plain["nll"] == pytest.approx(0.22437, abs=1e-4)
    for key in ("accuracy", "nll"):
        assert found["average"][key] == pytest.approx(np.mean([t[key] for t in found["tasks"].values()]), rel=1e-12)


def test_the_table_has_a_row_a_task():
    lines = evaluate(FAMILY / "plain", "--data", DATA).out.splitlines()
    rows = [line.split() for line in lines]
    assert rows[0] == ["task", "samples", "accuracy", "nll"]
    assert [row[0] for row in rows[2:]] == [*sorted(tools.TASKS["digits-vit"]), "average"]
    assert ["plain", "200", "0.9450", "0.2244"] in rows


@pytest.mark.parametrize("options", [HEADS, ["--batch", "150"], ["--group", "blur", "--batch", "7"]])
def test_the_same_figures_on_any_number_of_ranks(options):
    """Also where a rank has nothing to do, and where batches do not fill."""
    model = FAMILY / ("base" if options == HEADS else "plain")
    outputs = [evaluate(model, "--data", DATA, *options, "--json", ranks=ranks).out for ranks in (0, 1, 2, 3)]
    assert json.loads(outputs[0])["tasks"]
    assert len(set(outputs)) == 1


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_merged_file_that_is_the_fine_tuned_model(ranks, tmp_path):
    """base + (tuned − base), with and without its head in the file; the head of another task is another matter."""
    config = tools.recipe("digits-vit", "task_arithmetic", model_parameters={"weight": 1.0}, names=["plain"])
    tools.merge(config, tmp_path / "merged.h5")
    options = ("--data", DATA, "--group", "plain", "--json")
    want = json.loads(evaluate(FAMILY / "plain", *options).out)["tasks"]["plain"]
    for head in ((), ("--head", FAMILY / "plain"), ("--head", f"plain={FAMILY / 'plain'}")):
        found = json.loads(evaluate(tmp_path / "merged.h5", *options, *head, ranks=ranks).out)["tasks"]["plain"]
        assert found["correct"] == want["correct"]
        assert found["nll"] == pytest.approx(want["nll"], abs=1e-5)
    other = json.loads(evaluate(tmp_path / "merged.h5", *options, "--head", FAMILY / "rot90", ranks=ranks).out)
    assert other["tasks"]["plain"]["correct"] != want["correct"]


def test_a_score_that_is_not_finite_is_null(tmp_path):
    """Weights that overflow are no error: the model is just as bad as can be."""
    tensors = dict(tools.read_model(FAMILY / "plain"))
    dtype, array = tensors["classifier.weight"]
    tensors["classifier.weight"] = (dtype, np.full_like(array, np.inf))
    config = json.loads((FAMILY / "plain/config.json").read_text())
    tools.write_folder(tmp_path / "model", tensors, config)
    found = json.loads(evaluate(tmp_path / "model", "--data", DATA, "--group", "plain", "--json").out)
    assert found["tasks"]["plain"]["nll"] is None and found["average"]["nll"] is None
    assert found["tasks"]["plain"]["total"] == 200
    assert "not finite" in evaluate(tmp_path / "model", "--data", DATA, "--group", "plain").out


# ---- errors ---------------------------------------------------------------------------------------------------------


def model_with(folder, drop=(), **changes):
    """The plain model with other values in its config; None: without the key; and without some tensors."""
    config = json.loads((FAMILY / "plain/config.json").read_text())
    config = {k: v for k, v in {**config, **changes}.items() if v is not None}
    tensors = {n: t for n, t in tools.read_model(FAMILY / "plain").items() if n not in drop}
    return tools.write_folder(folder / "model", tensors, config)


def data_with(folder, **members):
    """A group of two samples with other members; None: without it."""
    good = {"inputs": np.zeros((2, 1, 8, 8), np.float32), "labels": np.zeros(2, np.int32)}
    with h5py.File(folder / "data.h5", "w") as file:
        for name, value in {**good, **members}.items():
            if value is not None:
                file[f"plain/{name}"] = value
    return folder / "data.h5"


def bad_image(value):
    images = np.zeros((2, 1, 8, 8))
    images[1, 0, 3, 3] = value
    return images


MODELS = {
    "type": ({"model_type": "swin"}, "model_type swin has no native evaluator (there are: vit"),
    "activation": ({"hidden_act": "mish"}, "hidden_act mish is not implemented (there are: gelu, "),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config: expected nothing, as this"),
    "pruned": ({"pruned_heads": {"0": [1]}}, "pruned_heads: expected nothing"),
    "regression": ({"problem_type": "regression"}, "problem_type: expected nothing"),
    "heads": ({"num_attention_heads": 5}, "hidden_size 128 is no multiple of num_attention_heads 5"),
    "wide heads": ({"head_dim": 64}, "head_dim 64 is not implemented"),
    "negative": ({"hidden_size": -128}, "hidden_size: expected a whole number from 1 to 1048576, found -128"),
    "text": ({"layer_norm_eps": "small"}, 'layer_norm_eps: expected a number from 0 on, found "small"'),
    "three sizes": ({"image_size": [8, 8, 1]}, "image_size: expected a whole number from 1 to"),
    "shape": ({"intermediate_size": 255}, "expected shape [255, 128] by config.json, found [256, 128]"),
    "layers": ({"num_hidden_layers": 5}, "needs tensor vit.encoder.layer.4.layernorm_before.weight"),
    "patches": ({"patch_size": 9}, "image_size 8x8 in patches of 9x9: expected 1 to 65535 patches"),
    "no classifier": ({"drop": ("classifier.weight",)}, "needs tensor classifier.weight, which is not"),
    "image": ({"num_channels": 3}, "expected shape [128, 3, 2, 2] by config.json, found [128, 1, 2, 2]"),
}  # fmt: skip

FILES = {
    "no inputs": ({"inputs": None}, "there is no dataset /plain/inputs"),
    "no labels": ({"labels": None}, "there is no dataset /plain/labels"),
    "no samples": ({"inputs": np.zeros((0, 1, 8, 8), np.float32)}, "expected shape [samples, channels, height, width]"),
    "flat": ({"inputs": np.zeros((2, 64), np.float32)}, "found [2, 64]"),
    "size": ({"inputs": np.zeros((2, 1, 8, 9), np.float32)}, "expected images of 1x8x8, as "),
    "integers": ({"inputs": np.zeros((2, 1, 8, 8), np.int32)}, "/plain/inputs: expected a dataset of floating-point"),
    "real labels": ({"labels": np.zeros(2)}, "/plain/labels: expected a dataset of whole numbers"),
    "few labels": ({"labels": np.zeros(1, np.int32)}, "/plain/labels: expected shape [2], one label a"),
    "label": ({"labels": np.array([0, 10])}, "label 10 of sample 1: expected 0 to 9"),
    "negative label": ({"labels": np.array([-100, 0])}, "label -100 of sample 0: expected 0 to 9"),
    "nan": ({"inputs": bad_image(np.nan)}, "/plain/inputs: sample 1 holds NaN or infinity"),
    "overflow": ({"inputs": bad_image(1e300)}, "/plain/inputs holds a value that does not fit type F32"),
}  # fmt: skip


def check_error(result, message):
    assert result.err.count("nps-eval: error: ") >= 1, result
    assert message in result.err, result
    lines = [line for line in result.err.splitlines() if "error: " in line]
    assert len(lines) == len(set(lines)), f"said once: {result}"
    assert not result.out, result


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_scored(case, ranks, tmp_path):
    changes, message = MODELS[case]
    model = model_with(tmp_path, **changes)
    check_error(evaluate(model, "--data", DATA, "--group", "plain", ranks=ranks, code=3), message)


@pytest.mark.parametrize("case", FILES)
def test_data_that_cannot_be_scored(case, tmp_path):
    members, message = FILES[case]
    data = data_with(tmp_path, **members)
    ranks = 2 if case in ("nan", "label") else 0
    check_error(evaluate(FAMILY / "plain", "--data", data, ranks=ranks, code=3), message)


OPTIONS = {
    "no data": ([], 2, "missing option --data FILE"),
    "unknown option": (["--data", DATA, "--groups", "plain"], 2, "did you mean '--group'?"),
    "group twice": (["--data", DATA, "--group", "plain", "--group", "plain"], 2, "--group: plain is given twice"),
    "head of no group": (["--data", DATA, "--head", f"plian={FAMILY / 'plain'}"], 2, "no group plian is scored"),
    "head twice": (["--data", DATA, "--head", "blur=a", "--head", "blur=b"], 2, "group blur is given twice"),
    "two heads": (["--data", DATA, "--head", "a", "--head", "b"], 2, "a and b are both for all groups"),
    "no batch": (["--data", DATA, "--batch", "0"], 2, "option --batch: expected a whole number from 1 on"),
    "large batch": (["--data", DATA, "--batch", "5000"], 2, "option --batch: expected at most 4096, found 5000"),
    "unknown group": (["--data", DATA, "--group", "plian"], 3, "there is no group plian (there are: blur, invert, "),
    "missing data": (["--data", FAMILY / "none.h5"], 3, "none.h5: cannot be opened: No such file or directory"),
    "no HDF5": (["--data", FAMILY / "expected.json"], 3, "expected.json: is not an HDF5 file"),
    "missing head": (["--data", DATA, "--head", FAMILY / "none"], 3, "digits-vit/none"),
    "head for fewer": (["--data", DATA, "--head", FAMILY / "parity", "--group", "plain"], 3, "expected 0 to 1"),
    "head without one": (["--data", DATA, "--head", FAMILY / "base", "--group", "plain"], 3, "this head model lacks"),
}  # fmt: skip


@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("case", OPTIONS)
def test_options(case, ranks):
    words, code, message = OPTIONS[case]
    result = evaluate(FAMILY / "plain", *words, ranks=ranks, code=code)
    check_error(result, message)


def test_a_file_without_groups(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["inputs"] = np.zeros((2, 1, 8, 8), np.float32)
    result = evaluate(FAMILY / "plain", "--data", tmp_path / "data.h5", code=3)
    check_error(result, "data.h5: expected groups of samples, found none")


def test_a_model_without_a_config(tmp_path):
    tools.write_folder(tmp_path / "model", tools.read_model(FAMILY / "plain"))
    check_error(evaluate(tmp_path / "model", "--data", DATA, code=3), "there is no config.json")
    check_error(evaluate(tools.MODELS / "bytes-llama/base", "--data", DATA, code=3), "expected texts (input_ids), as")
