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


# ---- what old versions store -------------------------------------------------------------------------------------------


def small(folder, name, tensors, **config):
    return tools.write_folder(folder / name, {n: ("F32", np.asarray(t, np.float32)) for n, t in tensors.items()}, config)


def ties_of(folder, *names, **more):
    return {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "parameters": {"weight": 0.5},
            "models": [{"model": str(folder / n)} for n in names], **more}  # fmt: skip


def added(*values):
    """base + (a − base)/2 + (b − base)/2 of numbers that float32 holds exactly."""
    base, *others = (np.asarray(v, np.float64) for v in values)
    return base + sum(0.5 * (o - base) for o in others)


BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": [1, 0.25, 0.0625],
    "model.layers.1.self_attn.rotary_emb.inv_freq": [1, 0.25, 0.03125],
    "h.0.attn.bias": np.tril(np.ones((1, 1, 4, 4))),
    "h.0.attn.masked_bias": np.array(-1e4),
    "model.layers.0.self_attn.rotary_emb.cos_cached": np.ones((1, 1, 4, 2)),
}  # fmt: skip


@pytest.mark.parametrize("ranks", [0, 2])
def test_tables_of_the_base_need_not_be_in_the_models(ranks, tmp_path):
    w = {"base": [1, 2, 3], "a": [2, 4, 3], "b": [1, 1, 1]}
    small(tmp_path, "base", {"w": w["base"], **BUFFERS})
    small(tmp_path, "a", {"w": w["a"]})
    # One that stores some, in another type's rounding.
    small(tmp_path, "b", {"w": w["b"], "model.layers.0.self_attn.rotary_emb.inv_freq": [1, 0.2490234375, 0.0625]})
    result = tools.merge(ties_of(tmp_path, "a", "b", out_dtype="bfloat16"), tmp_path / "out", ranks=ranks)
    assert "note: copied from the base, as not all models store them:" in result.err and "and 2 more" in result.err
    merged = tools.read_model(tmp_path / "out")
    assert tools.values(merged.pop("w")).tolist() == added(*w.values()).tolist()
    assert tools.same_tensors(merged, {n: ("F32", np.asarray(t, np.float32)) for n, t in BUFFERS.items()})


def test_tables_that_all_models_have_are_merged(tmp_path):
    name = "layers.0.rotary_emb.inv_freq"
    for model, value in {"base": [1, 0.5], "a": [1, 0.25], "b": [1, 0.5]}.items():
        small(tmp_path, model, {"w": [1.0], name: value})
    result = tools.merge(ties_of(tmp_path, "a", "b"), tmp_path / "out.h5")
    assert "copied from the base" not in result.err
    assert tools.read_model(tmp_path / "out.h5")[name][1].tolist() == [1, 0.375]


@pytest.mark.parametrize("name, value", [("h.0.attn.bias", np.ones(4)), ("h.0.attn.bias", np.ones((1, 1, 4, 3))),
                                         ("h.0.attn.c_attn.bias", np.ones((1, 1, 2, 2))), ("my_inv_freq", [1.0])])  # fmt: skip
def test_what_is_no_table_must_be_there(name, value, tmp_path):
    small(tmp_path, "base", {"w": [1.0], name: value})
    small(tmp_path, "a", {"w": [1.0]})
    result = tools.merge(ties_of(tmp_path, "a"), tmp_path / "out", code=3)
    assert f"a: lacks tensor {name} of the base" in result.err


def test_archives_keep_tables_of_the_base(tmp_path):
    w = {"base": [1, 2, 3, 4], "a": [2, 4, 3, 4], "b": [1, 1, 1, 4]}
    small(tmp_path, "base", {"w": w["base"], **BUFFERS})
    for name in "ab":
        small(tmp_path, name, {"w": w[name]})
    config = {**ties_of(tmp_path, "a", "b"), "merge_method": "nps",
              "nps": {"application": "compression", "density": 0.5, "subspaces": 1}}  # fmt: skip
    config.pop("parameters")
    tools.merge(config, tmp_path / "out.h5")
    assert tools.run(tools.CONVERT, tmp_path / "out.h5", tmp_path / "a.out", "--task", "a").code == 0
    tensors = tools.read_model(tmp_path / "a.out")
    assert tensors.keys() == {"w", *BUFFERS}
    for name, value in BUFFERS.items():
        assert np.array_equal(tensors[name][1], np.asarray(value, np.float32)), name


# ---- old names ---------------------------------------------------------------------------------------------------------


def bert(old, lead, shift, head=()):
    """The tensors of a small body, its norms called as of old or of late."""
    weight, bias = ("gamma", "beta") if old else ("weight", "bias")
    tensors = {
        f"{lead}embeddings.word_embeddings.weight": np.arange(12).reshape(4, 3) + shift,
        f"{lead}embeddings.LayerNorm.{weight}": np.arange(3) + 2 * shift,
        f"{lead}embeddings.LayerNorm.{bias}": np.arange(3) - shift,
        f"{lead}encoder.layer.0.attention.self.query.weight": np.eye(3) + shift,
    }
    return {**tensors, **{n: np.full(2, shift) for n in head}}


@pytest.mark.parametrize("old", [("base",), ("a",), ("base", "b"), ("a", "b")])
def test_old_names_of_norms_are_the_new_ones(old, tmp_path):
    shifts = {"base": 1, "a": 2, "b": -1}
    for name, shift in shifts.items():
        lead = "" if name == "base" else "bert."
        small(tmp_path, name, bert(name in old, lead, shift, [] if name == "base" else [f"{name}.weight"]))
    result = tools.merge(ties_of(tmp_path, "a", "b"), tmp_path / "out", ranks=2)
    for name in old:
        assert f"{name}: its LayerNorm.gamma and LayerNorm.beta are LayerNorm.weight and LayerNorm.bias" in result.err
    merged = tools.read_model(tmp_path / "out")
    assert merged.keys() == bert(False, "", 0).keys()
    for name, value in merged.items():
        values = [bert(False, "", shift)[name] for shift in shifts.values()]
        assert value[1].tolist() == added(*values).tolist(), name


def test_archives_have_the_names_of_their_base(tmp_path):
    small(tmp_path, "base", bert(True, "bert.", 1))
    for name, shift in {"a": 2, "b": -1}.items():
        small(tmp_path, name, bert(False, "", shift))
    config = {**ties_of(tmp_path, "a", "b"), "merge_method": "nps",
              "nps": {"application": "compression", "density": 1.0, "subspaces": 1}, "archive": {"value_bits": 16}}  # fmt: skip
    config.pop("parameters")
    tools.merge(config, tmp_path / "out.h5")
    assert tools.run(tools.CONVERT, tmp_path / "out.h5", tmp_path / "b.out", "--task", "b").code == 0
    tensors = tools.read_model(tmp_path / "b.out")
    for name, value in bert(True, "bert.", -1).items():
        np.testing.assert_allclose(tensors[name][1], value, atol=1e-2)


def test_old_names_that_all_models_have_stay(tmp_path):
    for name, shift in {"base": 1, "a": 2, "b": -1}.items():
        small(tmp_path, name, bert(True, "bert.", shift))
    result = tools.merge(ties_of(tmp_path, "a", "b"), tmp_path / "out.h5")
    assert "gamma" not in result.err
    assert tools.read_model(tmp_path / "out.h5").keys() == bert(True, "bert.", 0).keys()


def test_a_model_is_compared_with_one_of_old_names(tmp_path):
    small(tmp_path, "base", bert(True, "bert.", 1))
    small(tmp_path, "a", bert(False, "", 2))
    result = tools.run(tools.INSPECT, tmp_path / "a", "--against", tmp_path / "base", "--json")
    assert result.code == 0 and "only" not in result.err, result
    assert len(json.loads(result.out)["tensors"]) == 4


def test_a_head_of_the_base_alone_tells_the_way_out(tmp_path):
    head = ["cls.predictions.bias", "cls.predictions.transform.dense.weight"]
    small(tmp_path, "base", bert(True, "bert.", 1, head))
    for name, shift in {"a": 2, "b": -1}.items():
        small(tmp_path, name, bert(False, "bert.", shift, [f"{name}.weight"]))
    result = tools.merge(ties_of(tmp_path, "a", "b"), tmp_path / "out", code=3)
    assert "a: lacks tensor cls.predictions.bias of the base" in result.err
    assert f"base: no other model has {', '.join(head)}; where that is a head, use the base without it" in result.err
    assert f'AutoModel.from_pretrained("{tmp_path}/base")' in result.err
    # As that does it.
    body = {n.removeprefix("bert."): t for n, t in bert(False, "bert.", 1).items()}
    small(tmp_path, "body", body)
    tools.merge({**ties_of(tmp_path, "a", "b"), "base_model": str(tmp_path / "body")}, tmp_path / "out")


def test_layers_that_are_missing_are_no_head(tmp_path):
    small(tmp_path, "base", {"w": [1.0], "text.layers.0.weight": [1.0]})
    for name in "ab":
        small(tmp_path, name, {"w": [1.0]})
    result = tools.merge(ties_of(tmp_path, "a", "b"), tmp_path / "out", code=3)
    assert "b: lacks tensor text.layers.0.weight" in result.err and "where that is a head" not in result.err


# ---- vocabularies without tokenizer.json -------------------------------------------------------------------------------


def without_tokenizer(folder, rows=11, **files):
    """base with its tokenizer, and a, with the base's rows and none."""
    models = mergekit_live_cases.write_models(folder, family="llama")
    tensors = tools.read_model(models["base"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        dtype, value = tensors[name]
        tensors[name] = (dtype, np.resize(value, (rows, value.shape[1])))
    config = json.loads((models["base"] / "config.json").read_text())
    a = tools.write_folder(folder / "sp", tensors, {**config, "vocab_size": rows})
    (models["base"] / "tokenizer.model").write_bytes(b"pieces")
    for name, text in files.items():
        (a / name.replace("__", ".")).write_text(text)
    return recipe({"base": models["base"], "sp": a}, names=("base", "sp"), tokenizer_source="union")


TOKENS, ADDED, _ = mergekit_live_cases.VOCABULARIES["base"]
KNOWN = {t: i for i, t in enumerate(TOKENS)}
SAME = {
    "nothing": {},
    "the base's pieces": {"tokenizer__model": "pieces"},
    "the base's tokens": {"vocab__json": json.dumps(KNOWN), "added_tokens__json": json.dumps(ADDED), "vocab__txt": "\n".join(TOKENS)},
    "no added tokens": {"added_tokens__json": "{}", "vocab__txt": "\r\n".join(TOKENS) + "\r\n"},
}  # fmt: skip
OTHER = {
    "other pieces": ({"tokenizer__model": "pieceS"}, "its tokenizer.model says another one"),
    "pieces that the base lacks": ({"spiece__model": "pieces"}, "its spiece.model says another one"),
    "an added token": ({"added_tokens__json": '{"<|im_start|>": 11}'}, "its added_tokens.json says another one"),
    "another id": ({"vocab__json": json.dumps({**KNOWN, "a": 4})}, "its vocab.json says another one"),
    "another order": ({"vocab__txt": "\n".join(TOKENS[::-1])}, "its vocab.txt says another one"),
    "more rows": ({"rows": 13}, "its embeddings have 13 rows, those of base 11"),
    "no JSON": ({"vocab__json": "{"}, "vocab.json: is not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_a_model_without_tokenizer_has_the_vocabulary_of_the_base(case, tmp_path):
    result = tools.merge(without_tokenizer(tmp_path, **SAME[case]), tmp_path / "out")
    assert "sp has no tokenizer.json: its vocabulary is taken to be that of base" in result.err
    assert tools.read_model(tmp_path / "out")["lm_head.weight"][1].shape[0] == 11


@pytest.mark.parametrize("case", OTHER)
def test_a_vocabulary_that_cannot_be_read_is_not_guessed(case, tmp_path):
    more, message = OTHER[case]
    result = tools.merge(without_tokenizer(tmp_path, **more), tmp_path / "out", code=3, ranks=2)
    assert message in result.err and str(tmp_path / "sp") in result.err and not (tmp_path / "out").exists()
    if case != "no JSON":
        assert f'AutoTokenizer.from_pretrained("{tmp_path}/sp").save_pretrained("{tmp_path}/sp")' in result.err


def test_rows_beyond_the_vocabulary_of_the_base_are_left_out(tmp_path):
    config = {**without_tokenizer(tmp_path, rows=13), "tokenizer_source": "base"}
    tools.merge(config, tmp_path / "out")
    assert tools.read_model(tmp_path / "out")["lm_head.weight"][1].shape[0] == 11


# ---- caches of which parts were removed --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json"])
def test_links_to_files_that_are_gone_are_an_error(name, tmp_path):
    for model in ("base", "a"):
        folder = small(tmp_path, model, {"w": [1.0], "v": [2.0]})
        if name.endswith("index.json"):
            tools.write_folder(folder, {"w": ("F32", np.ones(1)), "v": ("F32", np.ones(1))}, {}, shards=2)
            (folder / "model.safetensors").unlink()
    (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / name).symlink_to("../blobs/gone")
    result = tools.merge(ties_of(tmp_path, "a"), tmp_path / "out", code=3)
    assert f"{tmp_path}/a/{name}: is a link to a file that is not there" in result.err


def test_a_tokenizer_whose_link_leads_nowhere_is_noted(tmp_path):
    for model in ("base", "a"):
        small(tmp_path, model, {"w": [1.0]})
    (tmp_path / "base/tokenizer.json").symlink_to("../blobs/gone")
    result = tools.merge(ties_of(tmp_path, "a"), tmp_path / "out")
    assert result.err.count(f"{tmp_path}/base/tokenizer.json: is a link to a file that is not there") == 1
    assert not (tmp_path / "out/tokenizer.json").exists()
