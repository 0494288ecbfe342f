"""BERT and RoBERTa as classifiers against transformers: tiny random ones with padding and token types; data that do not fit."""

import json

import h5py
import numpy as np
import pytest
import texts
import tools
from texts import transformers

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 29,
    "max_position_embeddings": 14, "num_labels": 4, "pad_token_id": 0,
}  # fmt: skip

CONFIGS = {
    "bert": ("Bert", {}),
    "bert of odd sizes": ("Bert", {"hidden_size": 21, "num_attention_heads": 3, "intermediate_size": 7, "type_vocab_size": 5}),
    "bert with one layer": ("Bert", {"num_hidden_layers": 1, "layer_norm_eps": 0.1, "hidden_act": "relu", "num_labels": 2}),
    "roberta": ("Roberta", {"pad_token_id": 1}),
    "roberta with other padding": ("Roberta", {"pad_token_id": 3, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {"pad_token_id": 1, "hidden_act": "gelu_new"}),
}  # fmt: skip

LENGTHS = [9, 4, 1]


def random_model(kind="Bert", seed=1, **changes):
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **changes}, attn_implementation="eager")
    return texts.random_model(getattr(transformers, f"{kind}ForSequenceClassification"), config, seed, 0.5)


def random_texts(model):
    """Of several lengths, filled up with padding; token types where there are several."""
    config = model.config
    rng = np.random.default_rng(2)
    ids = rng.integers(config.pad_token_id + 1, config.vocab_size, (len(LENGTHS), 9)).astype(np.int32)
    mask = (np.arange(9) < np.array(LENGTHS)[:, None]).astype(np.int32)
    ids[mask == 0] = config.pad_token_id
    types = rng.integers(0, config.type_vocab_size, ids.shape).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def check(model, folder, tmp_path, *options):
    inputs = random_texts(model)
    texts.check_classifier(inputs, texts.class_log_probabilities(model, inputs), folder, tmp_path / "data.h5", *options)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_networks(name, tmp_path):
    kind, changes = CONFIGS[name]
    model = random_model(kind, **changes)
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path)


def test_more_tokens_than_the_kernel_takes_at_once(tmp_path):
    model = random_model(max_position_embeddings=150)
    model.save_pretrained(tmp_path / "model")
    ids = texts.random_ids(29, rows=3, tokens=150)
    mask = np.ones_like(ids)
    mask[1, 70:] = 0
    want = texts.class_log_probabilities(model, {"input_ids": ids, "attention_mask": mask})[np.arange(3), [0, 3, 2]]
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name, value in (("input_ids", ids), ("attention_mask", mask), ("labels", np.array([0, 3, 2], np.int32))):
            file[f"text/{name}"] = value
    for batch in (2, 64):
        found = tools.evaluate(tmp_path / "model", "--data", tmp_path / "data.h5", "--batch", batch)["tasks"]["text"]
        assert found["nll"] == pytest.approx(-want.mean(), abs=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_bare_body_takes_its_head_elsewhere(kind, tmp_path):
    model, other = random_model(kind), random_model(kind, seed=3)
    body = model.bert if kind == "Bert" else model.roberta
    body.save_pretrained(tmp_path / "body")
    other.save_pretrained(tmp_path / "other")
    model.classifier = other.classifier
    check(model, tmp_path / "body", tmp_path, "--head", tmp_path / "other")


GOOD = {"input_ids": np.ones((2, 5), np.int32), "labels": np.zeros(2, np.int32)}
FILES = {
    "long": ({"input_ids": np.ones((2, 15), np.int32)}, "has positions for rows of at most 14 tokens, found 15"),
    "types": ({"token_type_ids": np.full((2, 5), 2, np.int32)}, "token_type_ids: 2 in row 0: expected 0 to 1"),
    "shape of types": ({"token_type_ids": np.zeros(5, np.int32)}, "token_type_ids: expected shape [2, 5], as input_ids, found [5]"),
    "a label a place": ({"labels": np.zeros((2, 5), np.int32)}, "expected input_ids [samples, tokens] with labels [samples], as"),
    "class": ({"labels": np.array([0, 4], np.int32)}, "label 4 of sample 1: expected 0 to 3, as the head has 4 classes"),
}  # fmt: skip
MODELS = {
    "positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type relative_key is not implemented"),
    "decoder": ({"is_decoder": True}, "is_decoder: expected nothing, as this option is not implemented, found true"),
    "heads": ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"),
    "labels": ({"problem_type": "multi_label_classification"}, "problem_type: expected nothing, as this option is not"),
}  # fmt: skip


def evaluate(tmp_path, model_changes, data_changes):
    random_model().save_pretrained(tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **model_changes}))
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name, value in {**GOOD, **data_changes}.items():
            file[f"text/{name}"] = value
    return tools.run(tools.EVAL, tmp_path / "model", "--data", tmp_path / "data.h5")


@pytest.mark.parametrize("case", FILES)
def test_data_that_do_not_fit(case, tmp_path):
    changes, message = FILES[case]
    result = evaluate(tmp_path, {}, changes)
    assert result.code == 3 and message in result.err, result


@pytest.mark.parametrize("case", MODELS)
def test_options_that_are_refused(case, tmp_path):
    changes, message = MODELS[case]
    result = evaluate(tmp_path, changes, {})
    assert result.code == 3 and message in result.err, result
