"""T5, Flan-T5 and mT5 against transformers: tiny random ones, padding, choices, greedy answers; data and options that do not fit."""

import json

import h5py
import numpy as np
import pytest
import texts
import tools
from texts import torch, transformers, write

SMALL = {
    "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "vocab_size": 11, "decoder_start_token_id": 0,
}  # fmt: skip

CONFIGS = {
    "t5": ("T5", {}),
    "gated": ("T5", {"feed_forward_proj": "gated-gelu"}),
    "flan-t5": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "other sizes": ("T5", {"d_model": 21, "num_heads": 3, "d_kv": 5, "d_ff": 7, "layer_norm_epsilon": 0.1}),
    "other stacks": ("T5", {"num_layers": 1, "num_decoder_layers": 3, "feed_forward_proj": "gated-silu"}),
    "other tokens": ("T5", {"pad_token_id": 3, "decoder_start_token_id": 5, "num_layers": 1}),
    "few buckets": ("T5", {"relative_attention_num_buckets": 5, "relative_attention_max_distance": 6}),
    "mt5": ("MT5", {}),
}  # fmt: skip

TOKENS, PLACES = 9, 5


def random_model(name="t5", folder=None, seed=1, **changes):
    """A model, saved to a folder as older versions of transformers do; without a tie it has a head of its own."""
    kind, config = CONFIGS[name]
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **config, **changes}, attn_implementation="eager")
    model = texts.random_model(getattr(transformers, f"{kind}ForConditionalGeneration"), config, seed, spread=0.4)
    with torch.no_grad():  # logits may be scaled by as much
        model.decoder.final_layer_norm.weight.mul_(config.d_model**0.5 if name != "flan-t5" else 1)
    if CONFIGS[name][1].get("tie_word_embeddings") is False:
        own = torch.randn(model.shared.weight.shape, generator=torch.Generator().manual_seed(seed))
        model.lm_head.weight = torch.nn.Parameter(0.4 * own)
    if folder:
        model.save_pretrained(folder)
    return model


def expected(model, ids, targets, **more):
    """[rows][places][vocabulary] log-probabilities in float64."""
    with torch.no_grad():
        inputs = {name: torch.from_numpy(value).long() for name, value in more.items()}
        logits = model.double()(torch.from_numpy(ids).long(), labels=torch.from_numpy(targets).long(), **inputs).logits
        return torch.log_softmax(logits, -1).numpy()


def sum_of(score):
    return score["nll"] * score["total"]


def check(model, folder, tmp_path, classes=(0, 3, 7), rows=2, places=PLACES):
    """Some tokens at every place: what a target that ends with it has more nll than the target before it."""
    vocabulary = model.config.vocab_size
    ids = texts.random_ids(vocabulary, rows, TOKENS)
    targets = texts.random_ids(vocabulary, rows, places, seed=4)
    classes = list(classes)
    groups = {}
    for r in range(rows):
        for p in range(places):
            for t in {*classes, targets[r, p]}:
                labels = np.full((1, places), -100, np.int32)
                labels[0, : p + 1] = [*targets[r, :p], t]
                groups[f"{r}-{p}-{t}"] = ({"input_ids": ids[r : r + 1], "labels": labels}, None)
    write(tmp_path / "data.h5", groups)
    found = tools.evaluate(folder, "--data", tmp_path / "data.h5")["tasks"]
    before = {(r, p): sum_of(found[f"{r}-{p - 1}-{targets[r, p - 1]}"]) if p else 0 for r in range(rows) for p in range(places)}
    values = [[[before[r, p] - sum_of(found[f"{r}-{p}-{t}"]) for t in classes] for p in range(places)] for r in range(rows)]
    tools.check_log_probabilities(np.array(values), expected(model, ids, targets)[:, :, classes])


@pytest.mark.parametrize("name", CONFIGS)
def test_random_networks(name, tmp_path):
    model = random_model(name, tmp_path / "model")
    check(model, tmp_path / "model", tmp_path, classes=range(11) if name == "t5" else (0, 7), rows=1)


def test_configs_of_older_versions(tmp_path):
    """They say that the head is not the embedding, and logits are not scaled then; they do not name the first token."""
    model = random_model("flan-t5", tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "scale_decoder_outputs"}
    del config["decoder_start_token_id"]
    path.write_text(json.dumps({**config, "tie_word_embeddings": False}))
    check(model, tmp_path / "model", tmp_path, classes=[2, 8])


def test_a_vocabulary_in_parts(tmp_path):
    """Of tables with more than 2^24 numbers a step sees some rows."""
    model = random_model("t5", tmp_path / "model", vocab_size=530_000, num_layers=1)
    check(model, tmp_path / "model", tmp_path, classes=[0, 524_287, 524_288, 529_999], rows=1, places=2)


# ---- padding, choices, answers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flan")
    return random_model("flan-t5", folder), folder


def test_long_rows_with_holes(flan, tmp_path):
    """More tokens than the kernel takes at once, and all buckets; padding on either side is not seen, targets end early."""
    model, folder = flan
    rng = np.random.default_rng(2)
    ids, targets = rng.integers(0, 11, (4, 150)).astype(np.int32), rng.integers(0, 11, (4, 170)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 90:] = mask[2, :30] = mask[3, 1:] = 0
    for row, end in enumerate((170, 1, 133, 70)):
        targets[row, end:] = -100
    targets[2, 40:50] = -100  # padding in between
    tables = [expected(model, row[keep != 0][None], target[None])[0] for row, keep, target in zip(ids, mask, targets)]
    together = expected(model, ids, targets, attention_mask=mask)
    places = [np.flatnonzero(target >= 0) for target in targets]
    nll = correct = 0
    for row, (table, asked) in enumerate(zip(tables, places)):
        assert np.abs(table[asked] - together[row, asked]).max() < 1e-6
        nll -= table[asked, targets[row, asked]].sum()
        correct += (table[asked].argmax(-1) == targets[row, asked]).sum()
    total = sum(map(len, places))
    write(tmp_path / "data.h5", {"long": ({"input_ids": ids, "attention_mask": mask, "labels": targets}, None)})
    for batch in (1, 3, 64):
        found = tools.evaluate(folder, "--data", tmp_path / "data.h5", "--batch", batch, ranks=2)["tasks"]["long"]
        assert (found["correct"], found["total"]) == (correct, total)
        assert found["nll"] == pytest.approx(nll / total, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_multiple_choice(batch, flan, tmp_path):
    model, folder = flan
    rng = np.random.default_rng(5)
    samples, choices = 12, 3
    ids = rng.integers(0, 11, (samples, 7)).astype(np.int32)
    mask = (np.arange(7) < rng.integers(1, 8, (samples, 1))).astype(np.int32)
    answers = rng.integers(0, 11, (samples, choices, 6)).astype(np.int32)
    answers[np.arange(6) >= rng.integers(1, 7, (samples, choices, 1))] = -100
    labels = rng.integers(0, choices, samples).astype(np.int32)
    flat = answers.reshape(-1, 6)
    table = expected(model, np.repeat(ids, choices, 0), flat, attention_mask=np.repeat(mask, choices, 0))
    each = np.take_along_axis(table, np.maximum(flat, 0)[:, :, None], 2)[:, :, 0]
    sums = np.where(flat >= 0, each, 0).sum(1).reshape(samples, choices)
    lengths = (answers >= 0).sum(2)
    letters = rng.integers(1, 30, (samples, choices)).astype(np.int32)
    data = {"input_ids": ids, "attention_mask": mask, "target_ids": answers, "labels": labels}
    write(tmp_path / "data.h5", {
        "acc": (data, None), "mean": (data, "acc_norm"), "letters": ({**data, "lengths": letters}, "acc_norm"),
    })  # fmt: skip
    found = tools.evaluate(folder, "--data", tmp_path / "data.h5", "--batch", batch)["tasks"]
    want = {"acc": sums, "mean": sums / lengths, "letters": sums / letters}
    assert len({tuple(values.argmax(1)) for values in want.values()}) == 3  # they tell different choices
    for name, values in want.items():
        nll = np.log(np.exp(values).sum(1)) - values[range(samples), labels]
        assert (found[name]["correct"], found[name]["total"]) == ((values.argmax(1) == labels).sum(), samples), name
        assert found[name]["nll"] == pytest.approx(nll.mean(), abs=1e-5), name


def test_exact_match_is_what_generate_gives(flan, tmp_path):
    """Answers that transformers generates from inputs of several lengths, and some that differ from them at one place."""
    model, folder = flan
    rng = np.random.default_rng(7)
    ids = rng.integers(2, 11, (8, 9)).astype(np.int32)
    mask = (np.arange(9) < rng.integers(1, 10, (8, 1))).astype(np.int32)
    ids[mask == 0] = 0
    with torch.no_grad():
        answers = model.generate(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask), max_new_tokens=6,
                                 do_sample=False, num_beams=1).numpy()[:, 1:]  # fmt: skip
    assert len({tuple(answer) for answer in answers}) > 2
    labels = np.full((8, 6), -100, np.int32)
    for row, answer in enumerate(answers):
        ends = np.flatnonzero(answer == 1)  # the end of the text, which is asked for too
        count = ends[0] + 1 if len(ends) else len(answer)
        labels[row, :count] = answer[:count]
        if row % 3 == 0:
            labels[row, count - 1] = (labels[row, count - 1] + 1) % 11
    write(tmp_path / "data.h5", {"exact": ({"input_ids": ids, "attention_mask": mask, "labels": labels}, "exact_match")})
    found = tools.evaluate(folder, "--data", tmp_path / "data.h5", "--batch", 3)["tasks"]["exact"]
    assert (found["correct"], found["total"]) == (5, 8)


# ---- merges, searches ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base and two models near it."""
    folder = tmp_path_factory.mktemp("family")
    for name, seed in (("base", 1), ("one", 2), ("two", 3)):
        model = random_model("flan-t5", folder / "base") if name == "base" else random_model("flan-t5")
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters() if name != "base" else ():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("kind", ["t5", "flan-t5", "mt5"])
def test_merged_models_load_with_the_same_logits(kind, tmp_path):
    """The mean of two, as a folder and after nps-convert: transformers' logits are those of the mean made by hand."""
    models = [random_model(kind, tmp_path / f"{seed}", seed) for seed in (1, 2)]
    config = {"merge_method": "linear", "models": [{"model": "1"}, {"model": "2"}], "parameters": {"weight": 0.5}}
    tools.merge(config, tmp_path / "out", ranks=2)
    tools.merge(config, tmp_path / "out.h5", ranks=3)
    tools.run(tools.CONVERT, tmp_path / "out.h5", tmp_path / "converted")
    ids, places = (torch.from_numpy(texts.random_ids(11, 2, n)).long() for n in (9, 5))
    with torch.no_grad():
        mean = {name: (a + models[1].state_dict()[name]) / 2 for name, a in models[0].state_dict().items()}
        models[0].load_state_dict(mean)
        want = models[0](input_ids=ids, labels=places).logits
        for folder in ("out", "converted"):
            merged, info = type(models[0]).from_pretrained(tmp_path / folder, output_loading_info=True)
            assert not info["missing_keys"] and not info["unexpected_keys"]
            assert (merged(input_ids=ids, labels=places).logits - want).abs().max() < 1e-5
    assert ("lm_head.weight" in tools.read_model(tmp_path / "out")) == (kind == "flan-t5")


def test_a_search_is_the_same_on_several_ranks_a_model(family, tmp_path):
    """Encoder and decoder on other ranks: what the decoder needs of the encoder goes with the batch."""
    rng = np.random.default_rng(8)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name in ("one", "two"):
            file[f"{name}/input_ids"] = rng.integers(0, 11, (5, 9)).astype(np.int32)
            file[f"{name}/target_ids"] = rng.integers(0, 11, (5, 2, 4)).astype(np.int32)
            file[f"{name}/labels"] = rng.integers(0, 2, 5).astype(np.int32)
    config = {
        "merge_method": "nps", "base_model": str(family / "base"), "models": [{"model": str(family / n)} for n in ("one", "two")],
        "nps": {"subspaces": 3, "density": 0.5}, "seed": 1,
        "search": {"stages": ["joint"], "generations": 2, "population": 4, "sigma": 0.3},
        "fitness": {"metric": "nll", "batch": 2, "tasks": [{"name": n, "data": str(tmp_path / "data.h5")} for n in ("one", "two")]},
    }  # fmt: skip
    tools.merge(config, tmp_path / "one.h5")
    want = tools.search_content(tmp_path / "one.h5")
    for ranks, size in ((2, 2), (5, 4)):
        config["search"]["ranks_per_model"] = size
        tools.merge(config, tmp_path / f"{ranks}.h5", ranks=ranks)
        assert tools.search_content(tmp_path / f"{ranks}.h5") == want, ranks


# ---- errors ----------------------------------------------------------------------------------------------------------

IDS, TARGETS, LABELS = np.zeros((2, 5), np.int32), np.zeros((2, 3, 4), np.int32), np.zeros(2, np.int32)

MODELS = {
    "activation": ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj gated-mish is not implemented (there are, also after"),
    "buckets": ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets 3, relative_attention_max_distance 128: ex"),
    "distance": ({"relative_attention_max_distance": 16}, "relative_attention_max_distance 16: expected 4 or more, and more than"),
    "token": ({"decoder_start_token_id": 11}, "decoder_start_token_id: expected a token of the vocabulary, found 11"),
    "layers": ({"num_decoder_layers": 3}, "needs tensor decoder.block.2.layer.0.layer_norm.weight"),
    "no decoder": ({"is_decoder": True}, "is_decoder: expected nothing, as this option is not implemented"),
}  # fmt: skip

FILES = {
    "no targets": ({"input_ids": IDS}, "expected input_ids [samples, tokens] with labels [samples, places], or target_ids"),
    "classes": ({"input_ids": IDS, "labels": LABELS}, "with labels [samples, places], or target_ids"),
    "choices": ({"input_ids": TARGETS, "labels": LABELS}, "with labels [samples, places], or target_ids"),
    "both": ({"input_ids": TARGETS, "target_ids": TARGETS, "labels": LABELS},
             "input_ids: expected shape [samples, tokens] beside target_ids, found [2, 3, 4]"),
    "shape": ({"input_ids": IDS, "target_ids": IDS, "labels": LABELS},
              "target_ids: expected shape [samples, choices, places], found [2, 5]"),
    "token": ({"input_ids": IDS, "labels": IDS + 11}, "labels: 11 in row 0: expected 0 to 10, or -100 where none"),
    "target": ({"input_ids": IDS, "target_ids": TARGETS - 2, "labels": LABELS}, "target_ids: -2 in row 0: expected 0 to 10"),
    "no such choice": ({"input_ids": IDS, "target_ids": TARGETS, "labels": LABELS + 3}, "label 3 of sample 0: expected 0 to 2"),
    "labels": ({"input_ids": IDS, "target_ids": TARGETS, "labels": IDS}, "labels: expected shape [samples], found [2, 5]"),
    "nothing asked": ({"input_ids": IDS, "labels": IDS - 100}, "no token is asked for"),
    "empty choice": ({"input_ids": IDS, "target_ids": TARGETS - 100, "labels": LABELS}, "choice 0 of sample 0 has no token"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_scored(case, tmp_path):
    changes, message = MODELS[case]
    random_model("gated", tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write(tmp_path / "data.h5", {"text": ({"input_ids": IDS, "labels": IDS}, None)})
    result = tools.run(tools.EVAL, tmp_path / "model", "--data", tmp_path / "data.h5")
    assert result.code == 3 and message in result.err, result


@pytest.mark.parametrize("case", FILES)
def test_data_that_cannot_be_scored(case, flan, tmp_path):
    members, message = FILES[case]
    write(tmp_path / "data.h5", {"text": (members, None)})
    result = tools.run(tools.EVAL, flan[1], "--data", tmp_path / "data.h5")
    assert result.code == 3 and message in result.err, result


def test_targets_need_an_encoder_decoder(tmp_path):
    write(tmp_path / "data.h5", {"text": ({"input_ids": IDS, "target_ids": TARGETS, "labels": LABELS}, None)})
    result = tools.run(tools.EVAL, tools.MODELS / "bytes-llama/base", "--data", tmp_path / "data.h5")
    assert result.code == 3 and "target_ids are for encoder-decoders, and " in result.err, result
