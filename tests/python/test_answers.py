"""Answers of decoders by the conventions of lm-evaluation-harness: multiple choice (acc, acc_norm) and exact_match, against
log-likelihoods by transformers."""

import h5py
import numpy as np
import pytest
import texts
import tools
from texts import torch, transformers, write

SAMPLES, CHOICES, TOKENS, VOCABULARY = 7, 3, 12, 13


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, vocab_size=VOCABULARY,
    )  # fmt: skip
    model = texts.random_model(transformers.LlamaForCausalLM, config, spread=0.2)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model.double(), folder


def make_choices():
    """Contexts with answers of several lengths, filled up behind."""
    rng = np.random.default_rng(5)
    ids = np.zeros((SAMPLES, CHOICES, TOKENS), np.int32)
    mask, answer = np.zeros_like(ids), np.zeros_like(ids)
    for i in range(SAMPLES):
        context = rng.integers(1, VOCABULARY, rng.integers(1, 5))
        for c in range(CHOICES):
            more = rng.integers(1, VOCABULARY, rng.integers(1, 7))
            end = len(context) + len(more)
            ids[i, c, :end] = [*context, *more]
            mask[i, c, :end] = 1
            answer[i, c, len(context) : end] = 1
    return {"input_ids": ids, "attention_mask": mask, "answer_mask": answer, "labels": rng.integers(0, CHOICES, SAMPLES)}


def likelihoods(model, data):
    """[samples][choices] Σ log p of the answer's tokens, each text by itself."""
    found = np.zeros((SAMPLES, CHOICES))
    for i in range(SAMPLES):
        for c in range(CHOICES):
            length = data["attention_mask"][i, c].sum()
            ids = data["input_ids"][i, c, :length]
            table = texts.expected(model, ids[None])[0]
            places = np.flatnonzero(data["answer_mask"][i, c, :length])
            found[i, c] = sum(table[p - 1, ids[p]] for p in places)
    return found


def scores_of(values, labels):
    shifted = values - values.max(1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(1)) - shifted[range(SAMPLES), labels]
    return int((values.argmax(1) == labels).sum()), nll.mean()


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_multiple_choice(batch, model, tmp_path):
    data = make_choices()
    labels, sums = data["labels"], likelihoods(model[0], data)
    tokens = data["answer_mask"].sum(2)
    letters = np.random.default_rng(6).integers(1, 30, (SAMPLES, CHOICES)).astype(np.int32)
    write(tmp_path / "data.h5", {
        "none": (data, None), "acc": (data, "acc"), "mean": (data, "acc_norm"),
        "letters": ({**data, "lengths": letters}, "acc_norm"),
    })  # fmt: skip
    found = tools.evaluate(model[1], "--data", tmp_path / "data.h5", "--batch", batch)["tasks"]
    want = {"none": sums, "acc": sums, "mean": sums / tokens, "letters": sums / letters}
    assert len({tuple(values.argmax(1)) for values in want.values()}) == 3  # they tell different choices
    for name, values in want.items():
        correct, nll = scores_of(values, labels)
        assert (found[name]["correct"], found[name]["total"]) == (correct, SAMPLES), name
        assert found[name]["nll"] == pytest.approx(nll, abs=1e-5), name


def test_whole_choices_count_without_an_answer_mask(model, tmp_path):
    data = make_choices()
    del data["answer_mask"]
    write(tmp_path / "data.h5", {"whole": (data, None)})
    whole = data["attention_mask"].copy()
    whole[:, :, 0] = 0
    correct, nll = scores_of(likelihoods(model[0], {**data, "answer_mask": whole}), data["labels"])
    found = tools.evaluate(model[1], "--data", tmp_path / "data.h5")["tasks"]["whole"]
    assert found["correct"] == correct and found["nll"] == pytest.approx(nll, abs=1e-5)


def test_exact_match_is_what_greedy_decoding_gives(model, tmp_path):
    """Answers that the network itself gives, and some that it does not give to the end."""
    rng = np.random.default_rng(7)
    ids = rng.integers(1, VOCABULARY, (6, 9)).astype(np.int32)
    labels = np.full_like(ids, -100)
    for row in range(6):
        for p in range(5, 9):
            with torch.no_grad():
                logits = model[0](torch.from_numpy(ids[row : row + 1, :p]).long()).logits[0, -1]
            ids[row, p] = int(logits.argmax())
        if row % 3 == 0:
            ids[row, 8] = (ids[row, 8] + 1) % VOCABULARY
        labels[row, 5:] = ids[row, 5:]
    write(tmp_path / "data.h5", {"exact": ({"input_ids": ids, "labels": labels}, "exact_match")})
    tables = texts.expected(model[0], ids)
    nll = -sum(tables[r, p - 1, ids[r, p]] for r in range(6) for p in range(5, 9)) / 6
    found = tools.evaluate(model[1], "--data", tmp_path / "data.h5")["tasks"]["exact"]
    assert (found["correct"], found["total"]) == (4, 6)
    assert found["nll"] == pytest.approx(nll, abs=1e-5)


GREEDY = {
    "llama": ("Llama", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}),
    "gemma2": ("Gemma2", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                          "head_dim": 8, "intermediate_size": 40, "sliding_window": 4, "tie_word_embeddings": False}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}),
}  # fmt: skip
PROMPTS, LONGEST, NEW = 8, 7, 5


@pytest.mark.parametrize("kind", GREEDY)
def test_exact_match_is_what_generate_gives(kind, tmp_path):
    """Prompts of several lengths in one batch, filled up before them for transformers; here before or behind."""
    name, sizes = GREEDY[kind]
    model_class = getattr(transformers, f"{name}{'LMHeadModel' if kind == 'gpt2' else 'ForCausalLM'}")
    config = model_class.config_class(**sizes, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    other = texts.random_model(model_class, config, spread=0.5)
    other.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(11)
    prompts = [rng.integers(3, VOCABULARY, n).tolist() for n in rng.integers(1, LONGEST + 1, PROMPTS)]
    ids = np.array([[0] * (LONGEST - len(p)) + p for p in prompts])
    with torch.no_grad():
        found = other.generate(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(ids != 0).long(), max_new_tokens=NEW, do_sample=False
        )[:, LONGEST:].tolist()
    answers = [answer[: answer.index(2) + 1] if 2 in answer else answer for answer in found]
    assert len({tuple(answer) for answer in answers}) > 2
    answers = [[*a[:-1], (a[-1] + 1) % VOCABULARY] if i % 4 == 1 else a for i, a in enumerate(answers)]
    rows = {side: {key: np.zeros((PROMPTS, LONGEST + NEW), np.int32) for key in ("input_ids", "attention_mask", "labels")}
            for side in ("before", "behind")}  # fmt: skip
    for side, data in rows.items():
        data["labels"][:] = -100
        for i, (prompt, answer) in enumerate(zip(prompts, answers)):
            start = LONGEST if side == "before" else len(prompt)
            data["input_ids"][i, start - len(prompt) : start + len(answer)] = prompt + answer
            data["attention_mask"][i, start - len(prompt) : start + len(answer)] = 1
            data["labels"][i, start : start + len(answer)] = answer
    write(tmp_path / "data.h5", {side: (data, "exact_match") for side, data in rows.items()})
    for batch in (1, 3):
        scores = tools.evaluate(tmp_path / "model", "--data", tmp_path / "data.h5", "--batch", batch)["tasks"]
        for side in rows:
            assert (scores[side]["correct"], scores[side]["total"]) == (6, PROMPTS), side
        assert scores["before"]["nll"] == pytest.approx(scores["behind"]["nll"], abs=1e-5)


ERRORS = {
    "no labels": ({"labels": None}, None, "choices need labels, which of them is right"),
    "no such choice": ({"labels": np.full(SAMPLES, 3)}, None, "label 3 of sample 0: expected 0 to 2, as there are 3 choices"),
    "metric": ({}, "exact_match", "metric: expected acc or acc_norm, found exact_match"),
    "no answer": ({"answer_mask": np.zeros((SAMPLES, CHOICES, TOKENS), np.int32)}, None,
                  "choice 0 of sample 0 has no token that counts"),
    "lengths": ({"lengths": np.zeros((SAMPLES, CHOICES), np.int32)}, "acc_norm", "lengths: expected 1 or more, found 0"),
    "shape": ({"answer_mask": np.zeros((SAMPLES, CHOICES, 2), np.int32)}, None,
              "answer_mask: expected shape [7, 3, 12], as input_ids, found [7, 3, 2]"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_choices_that_cannot_be_scored(case, model, tmp_path):
    changes, metric, message = ERRORS[case]
    data = {name: value for name, value in {**make_choices(), **changes}.items() if value is not None}
    write(tmp_path / "data.h5", {"text": (data, metric)})
    result = tools.run(tools.EVAL, model[1], "--data", tmp_path / "data.h5")
    assert result.code == 3 and message in result.err, result
