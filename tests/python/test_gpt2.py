"""GPT-2 against transformers: tiny random ones, padding on either side, data and options that do not fit."""

import json

import numpy as np
import pytest
import texts
import tools
from texts import check, check_long, transformers

SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 11, "n_positions": 150, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS = {
    "defaults": {},
    "untied": {"tie_word_embeddings": False, "n_inner": 19},
    "odd sizes": {"n_embd": 21, "n_head": 3, "n_layer": 1, "layer_norm_epsilon": 0.1},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
    "not scaled": {"scale_attn_weights": False},
}  # fmt: skip


def random_model(**changes):
    config = transformers.GPT2Config(**{**SMALL, **changes}, attn_implementation="eager")
    return texts.random_model(transformers.GPT2LMHeadModel, config, spread=0.5)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_networks(name, tmp_path):
    model = random_model(**CONFIGS[name])
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path, rows=1)


def test_long_rows_with_holes(tmp_path):
    model = random_model()
    model.save_pretrained(tmp_path / "model")
    check_long(model, tmp_path / "model", tmp_path)


def test_names_of_the_first_checkpoints(tmp_path):
    """They are those of the body alone."""
    model = random_model()
    model.transformer.save_pretrained(tmp_path / "model")
    assert "wte.weight" in tools.read_model(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path, rows=1)


ERRORS = {
    "positions": ({"n_positions": 150}, 152, "has positions for rows of at most 151 tokens, found 152"),
    "activation": ({"activation_function": "mish"}, 9, "activation_function mish is not implemented (there are: gelu, "),
    "cross": ({"add_cross_attention": True}, 9, "add_cross_attention: expected nothing, as this option is not implemented"),
    "heads": ({"n_head": 5}, 9, "n_embd 32 is no multiple of n_head 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_does_not_fit(case, tmp_path):
    changes, tokens, message = ERRORS[case]
    random_model().save_pretrained(tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with texts.h5py.File(tmp_path / "data.h5", "w") as file:
        file["text/input_ids"] = np.zeros((1, tokens), np.int32)
    result = tools.run(tools.EVAL, tmp_path / "model", "--data", tmp_path / "data.h5")
    assert result.code == 3 and message in result.err, result
