"""Llamas, Mistral, Qwen and Gemma against transformers: tiny random ones and the example family; texts that do not fit."""

import json

import h5py
import numpy as np
import pytest
import texts
import tools
from texts import check, check_long, transformers

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

# Few positions, and heads wide enough to have all kinds of waves.
SCALED = {"max_position_embeddings": 16, "head_dim": 12}
SCALINGS = {
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 3.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 12},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4, "beta_fast": 0.5, "beta_slow": 0.1},
    "yarn with a long ramp": {"factor": 4.0, "original_max_position_embeddings": 9},
    "yarn with scales": {"factor": 4.0, "original_max_position_embeddings": 9, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn with a factor": {"factor": 2.0, "original_max_position_embeddings": 9, "attention_factor": 1.5, "truncate": False},
}  # fmt: skip

OTHERS = {
    "mistral": ("Mistral", {}),
    "mistral with a window": ("Mistral", {"sliding_window": 3}),
    "mistral without a window": ("Mistral", {"sliding_window": None, "head_dim": 6, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with a window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}),
    "qwen2 with types": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4,
                                   "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3 with biases": ("Qwen3", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 14}),
    "qwen3 with a window": ("Qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}),
    "gemma2": ("Gemma2", {"head_dim": 14, "sliding_window": 3, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2 without caps": ("Gemma2", {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None,
                                       "query_pre_attn_scalar": 13, "tie_word_embeddings": False, "attention_bias": True}),
    "gemma2 with types": ("Gemma2", {"head_dim": 8, "sliding_window": 2, "layer_types": ["full_attention", "sliding_attention"],
                                     "hidden_activation": "silu"}),
    "gemma3": ("Gemma3", {"head_dim": 8, "num_hidden_layers": 7, "sliding_window": 3}),
    "gemma3 with scalings": ("Gemma3", {
        "head_dim": 12, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"], "query_pre_attn_scalar": 9,
        "final_logit_softcapping": 4.0, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.5, "rope_theta": 50.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7.0}}}),
}  # fmt: skip


def random_model(seed=1, kind="Llama", **changes):
    model = getattr(transformers, f"{kind}ForCausalLM")
    return texts.random_model(model, model.config_class(**{**SMALL, **changes}, attn_implementation="eager"), seed)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_networks(name, tmp_path):
    model = random_model(**CONFIGS[name])
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path)


def test_a_vocabulary_in_parts(tmp_path):
    """Of tables with more than 2^24 numbers a step sees some rows."""
    model = random_model(vocab_size=800_000, num_hidden_layers=1, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path, rows=1, tokens=5, classes=[0, 524_287, 524_288, 799_999])


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_positions(name, tmp_path):
    rope = {"rope_type": name.split()[0], "rope_theta": 100.0, **SCALINGS[name]}
    model = random_model(**SCALED, rope_parameters=rope)
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path, rows=1, tokens=25, classes=[2, 7])


@pytest.mark.parametrize("name", OTHERS)
def test_relatives(name, tmp_path):
    kind, changes = OTHERS[name]
    model = random_model(kind=kind, **changes)
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path, rows=1, classes=[0, 3, 10])


def test_several_shards_in_bfloat16(tmp_path):
    model = random_model().bfloat16()
    model.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    assert (tmp_path / "model/model.safetensors.index.json").exists()
    check(model, tmp_path / "model", tmp_path)


def test_embeddings_of_gemma_in_bfloat16(tmp_path):
    """Their factor is rounded to their type."""
    random_model(kind="Gemma2", head_dim=8, hidden_size=40).bfloat16().save_pretrained(tmp_path / "model")
    model = transformers.Gemma2ForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
    scale = model.model.embed_tokens.embed_scale
    rounded = scale.bfloat16().float()
    assert abs(rounded - scale) > 1e-3
    scale.copy_(rounded)
    check(model, tmp_path / "model", tmp_path, rows=1, classes=[0, 4])


def test_older_configs_of_gemma(tmp_path):
    """One scaling, which holds for layers that see all tokens, two bases, and a window in all layers but every so many."""
    model = random_model(
        kind="Gemma3", head_dim=8, num_hidden_layers=4, sliding_window=2, sliding_window_pattern=3,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 60.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 5.0}},
    )  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"], config["layer_types"]
    config.update(rope_theta=60.0, rope_local_base_freq=5.0, rope_scaling={"rope_type": "linear", "factor": 3.0})
    path.write_text(json.dumps({**config, "sliding_window_pattern": 3}))
    check(model, tmp_path / "model", tmp_path, rows=1, classes=[1, 8])


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}])
def test_positions_of_older_configs(scaling, tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0} if scaling else {"rope_type": "default"}
    model = random_model(rope_parameters={**rope, "rope_theta": 37.0})
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps({**config, "rope_theta": 37.0, "rope_scaling": scaling}))
    check(model, tmp_path / "model", tmp_path)


@pytest.mark.parametrize("window", [0, 20, 70])
def test_long_rows_with_holes(window, tmp_path):
    model = random_model(kind="Mistral", sliding_window=window) if window else random_model()
    model.save_pretrained(tmp_path / "model")
    check_long(model, tmp_path / "model", tmp_path)


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
    "scaled positions": ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling: rope_type longrope is not"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "the scaling of positions needs factor, which is not there"),
    "waves": ({"rope_scaling": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}},
              "expected 0 < low_freq_factor < high_freq_factor, found 4 and 1"),
    "part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not implemented, only 1"),
    "type": ({"model_type": "mamba"}, "model_type mamba has no native evaluator (there are: vit, "),
    "kind of layer": ({"model_type": "qwen3", "layer_types": ["full_attention", "linear_attention"]},
                      "expected full_attention or sliding_attention for layer 1, found linear_attention"),
    "theta": ({"rope_theta": 0}, "rope_theta: expected a number above 0, found 0"),
    "groups": ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
    "odd heads": ({"head_dim": 31}, "head_dim: expected an even number, found 31"),
    "activation": ({"hidden_act": "mish"}, "hidden_act mish is not implemented"),
    "both directions": ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention: expected noth"),
    "scalar": ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar: expected a number above 0, found 0"),
    "parallel": ({"pretraining_tp": 2}, "pretraining_tp 2 is not implemented, only 1"),
    "vocabulary": ({"vocab_size": 300}, "expected shape [300, 128] by config.json, found [256, 128]"),
    "layers": ({"num_hidden_layers": 5}, "needs tensor model.layers.4.input_layernorm.weight"),
}  # fmt: skip

GOOD = np.zeros((2, 5), np.int32)
FILES = {
    "images": ({"inputs": np.zeros((2, 1, 8, 8), np.float32), "labels": np.zeros(2, np.int32)}, "expected texts (input_ids), as"),
    "flat": ({"input_ids": GOOD[0]}, "input_ids: expected shape [samples, tokens] or [samples, choices, tokens], found [5]"),
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
