"""Llamas against transformers: tiny random ones and the example family; texts that do not fit.

The log-probabilities of every token at every place are what nps-eval gives as nll where only that place is asked for that
token: one group a row, place and token.
"""

import json
import os

import h5py
import numpy as np
import pytest
import tools

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FAMILY = tools.MODELS / "bytes-llama"
TASKS = tools.TASKS["bytes-llama"]
PARTS = {"cal": FAMILY / "calibration.h5", "test": FAMILY / "test.h5"}
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40,
    "vocab_size": 11, "max_position_embeddings": 256,
}  # fmt: skip

CONFIGS = {
    "defaults": {},
    "tied": {"tie_word_embeddings": True},
    "one key/value head": {"num_key_value_heads": 1},
    "as many key/value heads": {"num_key_value_heads": 4},
    "other theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 37.0}},
    "wide heads": {"head_dim": 14},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "odd sizes": {"hidden_size": 27, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10, "intermediate_size": 7},
    "one layer, large eps": {"num_hidden_layers": 1, "rms_norm_eps": 0.1},
    "gelu": {"hidden_act": "gelu"},
}  # fmt: skip


def random_model(seed=1, **changes):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**{**SMALL, **changes}, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def random_texts(vocabulary, rows=2, tokens=9):
    return np.random.default_rng(3).integers(0, vocabulary, (rows, tokens)).astype(np.int32)


def expected(model, ids):
    """[rows][tokens − 1][vocabulary] log-probabilities in float64."""
    with torch.no_grad():
        logits = model.double()(torch.from_numpy(ids).long()).logits
        return torch.log_softmax(logits, -1).numpy()[:, :-1]


def log_probabilities(folder, ids, vocabulary, path):
    rows, tokens = ids.shape
    places = [(r, p, t) for r in range(rows) for p in range(tokens - 1) for t in range(vocabulary)]
    with h5py.File(path, "w") as file:
        for r, p, t in places:
            labels = np.full((1, tokens), -100, np.int32)
            labels[0, p + 1] = t
            file[f"{r}-{p}-{t}/input_ids"] = ids[r : r + 1]
            file[f"{r}-{p}-{t}/labels"] = labels
    found = tools.evaluate(folder, "--data", path)["tasks"]
    values = [-found[f"{r}-{p}-{t}"]["nll"] for r, p, t in places]
    return np.array(values).reshape(rows, tokens - 1, vocabulary)


def check(model, folder, tmp_path):
    vocabulary = model.config.vocab_size
    ids = random_texts(vocabulary)
    want = expected(model, ids)
    tools.check_log_probabilities(log_probabilities(folder, ids, vocabulary, tmp_path / "data.h5"), want)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_networks(name, tmp_path):
    model = random_model(**CONFIGS[name])
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path)


def test_several_shards_in_bfloat16(tmp_path):
    model = random_model().bfloat16()
    model.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    assert (tmp_path / "model/model.safetensors.index.json").exists()
    check(model, tmp_path / "model", tmp_path)


def test_theta_of_older_configs(tmp_path):
    model = random_model(rope_parameters={"rope_type": "default", "rope_theta": 37.0})
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps({**config, "rope_theta": 37.0, "rope_scaling": None}))
    check(model, tmp_path / "model", tmp_path)


def test_long_rows_with_holes(tmp_path):
    """More positions than the kernel takes at once; padding on either side is neither seen nor asked for."""
    model = random_model()
    model.save_pretrained(tmp_path / "model")
    ids = random_texts(11, rows=3, tokens=150)
    mask = np.ones_like(ids)
    mask[1, 90:] = 0
    mask[2, :30] = 0
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name, m in (("whole", None), ("padded", mask)):
            file[f"{name}/input_ids"] = ids
            if m is not None:
                file[f"{name}/attention_mask"] = m
    want = {}
    for name, m in (("whole", np.ones_like(ids)), ("padded", mask)):
        texts = [row[keep != 0] for row, keep in zip(ids, m)]  # only distances between positions count
        tables = [expected(model, text[None])[0] for text in texts]
        chosen = np.concatenate([table[range(len(table)), text[1:]] for table, text in zip(tables, texts)])
        correct = sum(int((table.argmax(-1) == text[1:]).sum()) for table, text in zip(tables, texts))
        want[name] = (correct, len(chosen), -chosen.mean())
    for batch in (1, 2, 64):
        found = tools.evaluate(tmp_path / "model", "--data", tmp_path / "data.h5", "--batch", batch)["tasks"]
        for name, (correct, total, nll) in want.items():
            assert (found[name]["correct"], found[name]["total"]) == (correct, total)
            assert found[name]["nll"] == pytest.approx(nll, abs=1e-5)


# ---- the example family ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_recorded_scores(part):
    """Accuracies within one token, nll within 1e-4."""
    recorded = json.loads((FAMILY / "expected.json").read_text())["tasks"]
    base = tools.evaluate(FAMILY / "base", "--data", PARTS[part], ranks=2)["tasks"]
    for task in TASKS:
        tuned = tools.evaluate(FAMILY / task, "--data", PARTS[part], "--group", task)["tasks"][task]
        for kind, found in (("base", base[task]), ("finetuned", tuned)):
            want, total = recorded[task][part][kind], recorded[task][part]["tokens"]
            assert found["total"] == total
            assert abs(found["correct"] - want["accuracy"] * total) <= 1 + 1e-3, (task, kind)
            assert found["nll"] == pytest.approx(want["nll"], abs=1e-4), (task, kind)


def test_a_search_on_texts_is_the_same_on_any_number_of_ranks(tmp_path):
    """Two tasks, joint and by nll: the same bytes, and better than its start."""
    names = ["french", "legal"]
    with h5py.File(PARTS["cal"]) as source, h5py.File(tmp_path / "data.h5", "w") as target:
        for name in names:
            target[f"{name}/input_ids"] = source[f"{name}/input_ids"][:6]
    config = {
        "merge_method": "nps", "base_model": str(FAMILY / "base"), "models": [{"model": str(FAMILY / n)} for n in names],
        "nps": {"subspaces": 3, "density": 0.3}, "seed": 1,
        "search": {"stages": ["joint"], "generations": 8, "population": 6, "sigma": 0.1, "final": "best"},
        "fitness": {"metric": "nll", "holdout": 0, "batch": 4,
                    "tasks": [{"name": n, "data": str(tmp_path / "data.h5")} for n in names]},
    }  # fmt: skip
    files = []
    for ranks in (1, 3):
        tools.merge(config, tmp_path / f"{ranks}.h5", ranks=ranks)
        with h5py.File(tmp_path / f"{ranks}.h5") as file:
            history = file["search/joint"]
            nll = history["nll_sum"][:].sum(1)
            assert nll[history.attrs["best"]] < nll[history.attrs["start"]]
            parts = [history[k][:].tobytes() for k in ("genome", "correct", "total", "nll_sum")]
            files.append(parts + [d[:].tobytes() for _, d in sorted(file["tensors"].items())])
    assert files[0] == files[1]


# ---- errors ---------------------------------------------------------------------------------------------------------


MODELS = {
    "scaled positions": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling: rope_type linear is not"),
    "theta": ({"rope_theta": 0}, "rope_theta: expected a number above 0, found 0"),
    "groups": ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
    "odd heads": ({"head_dim": 31}, "head_dim: expected an even number, found 31"),
    "activation": ({"hidden_act": "mish"}, "hidden_act mish is not implemented"),
    "parallel": ({"pretraining_tp": 2}, "pretraining_tp 2 is not implemented, only 1"),
    "vocabulary": ({"vocab_size": 300}, "expected shape [300, 128] by config.json, found [256, 128]"),
    "layers": ({"num_hidden_layers": 5}, "needs tensor model.layers.4.input_layernorm.weight"),
}  # fmt: skip

GOOD = np.zeros((2, 5), np.int32)
FILES = {
    "images": ({"inputs": np.zeros((2, 1, 8, 8), np.float32), "labels": np.zeros(2, np.int32)}, "expected texts (input_ids), as"),
    "flat": ({"input_ids": GOOD[0]}, "input_ids: expected shape [samples, tokens], found [5]"),
    "one token": ({"input_ids": GOOD[:, :1]}, "expected rows of 2 to 65536 tokens, found 1"),
    "token": ({"input_ids": GOOD + 256}, "input_ids: token 256 in row 0: expected 0 to 255"),
    "mask": ({"input_ids": GOOD, "attention_mask": GOOD[:1]}, "attention_mask: expected shape [2, 5], as input_ids"),
    "labels": ({"input_ids": GOOD, "labels": GOOD[:, 0]}, "labels: expected shape [2, 5], as input_ids, found [2]"),
    "label": ({"input_ids": GOOD, "labels": GOOD - 1}, "labels: -1 in row 0: expected 0 to 255, or -100 where none"),
    "nothing asked": ({"input_ids": GOOD, "attention_mask": GOOD}, "no token is asked for"),
}  # fmt: skip


def check_error(result, message):
    assert result.code == 3 and result.err.count("nps-eval: error: ") >= 1 and message in result.err, result


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_scored(case, tmp_path):
    changes, message = MODELS[case]
    config = {**json.loads((FAMILY / "base/config.json").read_text()), **changes}
    model = tools.write_folder(tmp_path / "model", dict(tools.read_model(FAMILY / "base")), config)
    check_error(tools.run(tools.EVAL, model, "--data", PARTS["cal"]), message)


@pytest.mark.parametrize("case", FILES)
def test_texts_that_cannot_be_scored(case, tmp_path):
    members, message = FILES[case]
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name, value in members.items():
            file[f"text/{name}"] = value
    check_error(tools.run(tools.EVAL, FAMILY / "base", "--data", tmp_path / "data.h5", ranks=2), message)


def test_images_need_another_network(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["text/input_ids"] = GOOD
    family = tools.MODELS / "digits-vit"
    check_error(tools.run(tools.EVAL, family / "plain", "--data", tmp_path / "data.h5"), "expected images (inputs), as")
