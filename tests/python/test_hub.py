"""Models as they lie on the hub: what old and new versions of transformers, and Python's json, put into their files."""

import json

import mergekit_live_cases
import numpy as np
import pytest
import tools

# What transformers writes where there is no limit, and what json writes of math.inf.
BIG = 1000000000000000019884624838656
ODD = '"model_max_length": 1000000000000000019884624838656'
INFINITE = '"time_step_limit": [0.0, Infinity], "low": -Infinity, "none": NaN'


def put_first(path, text):
    path.write_text("{" + text + ", " + path.read_text().lstrip().removeprefix("{"))


def write_models(folder):
    models = mergekit_live_cases.write_models(folder, family="llama")
    for path in models.values():
        put_first(path / "tokenizer_config.json", ODD + ', "chat_template": "{{ messages }}"')
        put_first(path / "config.json", INFINITE)
    return models


def recipe(models, method="linear", names=("base", "a"), **more):
    return {"merge_method": method, "base_model": str(models["base"]),
            "models": [{"model": str(models[n]), "parameters": {"weight": 0.5}} for n in names], **more}  # fmt: skip


# ---- numbers of Python's json ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [0, 2])
def test_numbers_that_c_lacks_travel(ranks, tmp_path):
    models = write_models(tmp_path)
    config = recipe(models, tokenizer_source="union", chat_template="auto")
    tools.merge(config, tmp_path / "out.h5", ranks=ranks)
    result = tools.merge(config, tmp_path / "out", ranks=ranks)
    tools.merge({"merge_method": "passthrough", "models": [{"model": "out.h5"}]}, tmp_path / "back")
    assert "no model has one" not in result.err
    for out in (tmp_path / "out", tmp_path / "back"):
        tokenizer, text = (out / "tokenizer_config.json").read_text(), (out / "config.json").read_text()
        assert ODD in tokenizer and json.loads(tokenizer)["model_max_length"] == BIG
        assert "chat_template" not in json.loads(tokenizer), "beside chat_template.jinja"
        assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
        found = json.loads(text)
        assert found["time_step_limit"] == [0, np.inf] and found["low"] == -np.inf and np.isnan(found["none"])
        assert found["vocab_size"] > 11
        assert "number " not in text + tokenizer
    assert tools.run(tools.INSPECT, tmp_path / "out", "--json").code == 0


@pytest.mark.parametrize("template", ["auto", "chatml"])
def test_a_tokenizer_config_that_is_no_json_is_an_error(template, tmp_path):
    models = write_models(tmp_path)
    (models["base"] / "tokenizer_config.json").write_text('{"chat_template": "x" ')
    config = recipe(models, chat_template=template)
    result = tools.merge(config, tmp_path / "out", code=3)
    assert "tokenizer_config.json: is not valid JSON: line 1" in result.err and not (tmp_path / "out").exists()
