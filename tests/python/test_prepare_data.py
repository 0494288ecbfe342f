"""tools/prepare_data.py: texts to calibration data, with a tokenizer of a word a token."""

import json
import runpy
import sys

import h5py
import numpy as np
import pytest
import texts
import tools
from texts import transformers

tokenizers = pytest.importorskip("tokenizers")
WORDS = "[PAD] [END] [CLS] [SEP] the cat sat on a mat dog ran away".split()
program = runpy.run_path(str(tools.ROOT / "tools/prepare_data.py"))
NUMBER = {word: i for i, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """As BERT's: [CLS] text [SEP] text2 [SEP], with token types."""
    pairs = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return save(tmp_path_factory.mktemp("paired"), pairs, ["input_ids", "token_type_ids", "attention_mask"])


def save(folder, processor=None, names=None):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(NUMBER, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if processor:
        tokenizer.post_processor = processor
    more = {"model_input_names": names} if names else {}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[END]", **more
    )
    fast.save_pretrained(folder)
    return folder


def prepare(tokenizer, tmp_path, samples, *options, name="samples.jsonl", code=0):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(s) for s in samples) if isinstance(samples, list) else samples)
    command = ["prepare_data.py", "--tokenizer", tokenizer, "--out", tmp_path / "data.h5", "--group", "task", *options, path]
    with pytest.MonkeyPatch.context() as patch:  # in this process, which has loaded transformers already
        patch.setattr(sys, "argv", [str(part) for part in command])
        if code:
            with pytest.raises(SystemExit) as failed:
                program["main"]()
            return failed.value.code
        program["main"]()
    with h5py.File(tmp_path / "data.h5") as file:
        return {key: value[:] for key, value in file["task"].items()}, file["task"].attrs.get("metric")


def numbers(text):
    return [NUMBER[word] for word in text.split()]


def test_texts_are_packed(plain, tmp_path):
    samples = [{"text": "the cat sat"}, {"text": "a dog ran away"}, {"text": "the mat"}]
    data, metric = prepare(plain, tmp_path, samples, "--length", 4)
    assert metric is None and set(data) == {"input_ids"}
    assert data["input_ids"].tolist() == [numbers("the cat sat [END]"), numbers("a dog ran away"), numbers("[END] the mat [END]")]


def test_classified_pairs(paired, tmp_path):
    samples = [{"text": "the cat", "text2": "sat", "label": 1}, {"text": "a dog ran", "label": 0}]
    data, metric = prepare(paired, tmp_path, samples)
    assert metric is None and data["labels"].tolist() == [1, 0]
    assert data["input_ids"].tolist() == [numbers("[CLS] the cat [SEP] sat [SEP]"), numbers("[CLS] a dog ran [SEP] [PAD]")]
    assert data["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert data["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0] * 6]


def test_choices_can_be_scored(plain, tmp_path):
    samples = [{"context": "the cat sat", "choices": ["on a mat", "away"], "label": 0},
               {"context": "a dog ", "choices": ["ran", "sat on"], "label": 1}]  # fmt: skip
    data, metric = prepare(plain, tmp_path, samples, "--norm")
    assert metric == "acc_norm" and data["labels"].tolist() == [0, 1]
    assert data["input_ids"][0].tolist() == [numbers("the cat sat on a mat"), numbers("the cat sat away [PAD] [PAD]")]
    assert data["answer_mask"].tolist() == [[[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0]], [[0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]]
    assert data["attention_mask"].sum(2).tolist() == [[6, 4], [3, 4]]
    assert data["lengths"].tolist() == [[8, 4], [3, 6]]
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=len(WORDS),
    )  # fmt: skip
    texts.random_model(transformers.LlamaForCausalLM, config).save_pretrained(tmp_path / "model")
    assert tools.evaluate(tmp_path / "model", "--data", tmp_path / "data.h5")["tasks"]["task"]["total"] == 2


def test_an_answer_without_context_follows_the_end_of_text(plain, tmp_path):
    data, _ = prepare(plain, tmp_path, [{"context": "", "answer": "the cat"}])
    assert data["input_ids"].tolist() == [numbers("[END] the cat")]
    assert data["labels"].tolist() == [[-100, *numbers("the cat")]]


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory):
    """As T5's: the end of text behind each, and a config with encoder and decoder."""
    end = tokenizers.processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    folder = save(tmp_path_factory.mktemp("seq2seq"), end)
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2, vocab_size=len(WORDS), decoder_start_token_id=0
    )
    texts.random_model(transformers.T5ForConditionalGeneration, config).save_pretrained(folder)
    return folder


def test_answers_of_a_decoder_with_an_encoder(seq2seq, tmp_path):
    samples = [{"context": "the cat", "answer": "sat on"}, {"context": "a dog ran", "answer": "away"}]
    data, metric = prepare(seq2seq, tmp_path, samples)
    assert metric == "exact_match"
    assert data["input_ids"].tolist() == [numbers("the cat [END] [PAD]"), numbers("a dog ran [END]")]
    assert data["attention_mask"].tolist() == [[1, 1, 1, 0], [1] * 4]
    assert data["labels"].tolist() == [numbers("sat on [END]"), [*numbers("away [END]"), -100]]
    assert tools.evaluate(seq2seq, "--data", tmp_path / "data.h5")["tasks"]["task"]["total"] == 2


def test_choices_of_a_decoder_with_an_encoder(seq2seq, tmp_path):
    samples = [{"context": "the cat", "choices": ["sat on", "ran"], "label": 1}]
    data, metric = prepare(seq2seq, tmp_path, samples, "--norm", "--length", 2)
    assert metric == "acc_norm" and data["labels"].tolist() == [1]
    assert data["input_ids"].tolist() == [numbers("cat [END]")]
    assert data["target_ids"].tolist() == [[numbers("sat on"), [*numbers("ran"), -100]]]
    assert data["lengths"].tolist() == [[6, 3]]
    assert tools.evaluate(seq2seq, "--data", tmp_path / "data.h5")["tasks"]["task"]["total"] == 1


def test_texts_without_a_question_are_not_for_encoders(seq2seq, tmp_path):
    assert "needs contexts with choices or answers" in prepare(seq2seq, tmp_path, [{"text": "the cat"}], code=1)


def test_tokens_of_answers(plain, tmp_path):
    _, metric = prepare(plain, tmp_path, [{"context": "the cat", "answer": "sat on"}], "--tokens")
    assert metric is None


def test_answers(plain, tmp_path):
    samples = [{"context": "the cat", "answer": "sat on"}, {"context": "a dog", "answer": "ran"}]
    data, metric = prepare(plain, tmp_path, samples)
    assert metric == "exact_match"
    assert data["labels"].tolist() == [[-100, -100, *numbers("sat on")], [-100, -100, *numbers("ran"), -100]]
    assert np.array_equal(data["attention_mask"], [[1] * 4, [1] * 3 + [0]])


ERRORS = {
    "keys": ([{"text": "a"}, {"context": "a"}], "expected the same keys in all samples"),
    "short": ([{"text": "a"}], "2 tokens in all texts are less than one row of 512"),
    "not JSON": ("{text", "samples.jsonl: "),
    "choices": ([{"context": "a", "choices": ["a"] * n, "label": 0} for n in (2, 3)], "the same number of choices"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_prepared(case, plain, tmp_path):
    samples, message = ERRORS[case]
    assert message in prepare(plain, tmp_path, samples, code=1)
