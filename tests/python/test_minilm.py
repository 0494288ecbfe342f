"""A real model, all-MiniLM-L6-v2 as sentence-transformers stores it (a body without a prefix, a buffer of integers): its scores
against transformers, merged with models that have heads; and the scripts of tests/models on made-up texts."""

import copy
import gzip
import json
import random
import sys

import h5py
import numpy as np
import pytest
import texts
import tools
from texts import torch, transformers

sys.path.insert(0, str(tools.ROOT / "tests/models"))
import minilm_fetch
import minilm_study
import minilm_texts
import minilm_tune

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "read() attempts to read up to count bytes from file descriptor fd into the buffer starting at buf.",
    "Übergeordnete Prozesse erben die Umgebung; naïve façade, 東京.",
    "Yes.",
]


@pytest.fixture(scope="module")
def minilm():
    return minilm_fetch.fetch_model()


@pytest.fixture(scope="module")
def tuned(minilm, tmp_path_factory):
    """(folder, base, [two models]) with random heads and moved bodies, saved as transformers does: with a prefix, without
    the buffer. The base has the first one's head."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(1)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=3).eval()
    models = [copy.deepcopy(base) for _ in range(2)]
    with torch.no_grad():
        for model, name in zip(models, ("one", "two")):
            model.classifier.weight.normal_(0, 2)
            for parameter in model.base_model.parameters():
                parameter.add_(torch.randn(parameter.shape[-1]) * parameter.abs().mean(), alpha=0.02)
            model.save_pretrained(folder / name)
        base.classifier.load_state_dict(models[0].classifier.state_dict())
    return folder, base, models


def tokenized(folder):
    rows = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="np")
    return {name: value.astype(np.int32) for name, value in rows.items()}


def check(model, inputs, folder, tmp_path, *options):
    want = texts.class_log_probabilities(copy.deepcopy(model), inputs)
    texts.check_classifier(inputs, want, folder, tmp_path / "data.h5", *options)


def test_a_real_model_against_transformers(minilm, tuned, tmp_path):
    folder, base, models = tuned
    inputs = tokenized(minilm)
    check(base, inputs, minilm, tmp_path, "--head", folder / "one")
    config = {"merge_method": "task_arithmetic", "base_model": str(minilm), "parameters": {"weight": 1, "lambda": 0.5},
              "models": [{"model": str(folder / "one")}, {"model": str(folder / "two")}],
              "output": {"head": "two"}}  # fmt: skip
    result = tools.merge(config, tmp_path / "merged", ranks=2)
    assert "base: its tensors are named as in two" in result.err + result.out, result
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    state, moved = merged.state_dict(), [model.state_dict() for model in models]
    for name, value in base.base_model.state_dict(prefix="bert.").items():
        sum_of_both = value + 0.5 * sum(m[name] - value for m in moved)
        assert torch.allclose(state[name], sum_of_both, rtol=0, atol=1e-6), name
    assert torch.equal(state["classifier.weight"], moved[1]["classifier.weight"])
    for name, value in tokenized(tmp_path / "merged").items():
        assert np.array_equal(value, inputs[name]), name
    check(merged, inputs, tmp_path / "merged", tmp_path)


def test_names_with_and_without_a_prefix(minilm, tuned, tmp_path):
    one, two = str(tuned[0] / "one"), str(tuned[0] / "two")
    config = {"merge_method": "linear", "base_model": str(minilm), "parameters": {"weight": 1}}
    tools.merge({**config, "models": [{"model": one}, {"model": two}]}, tmp_path / "bare.h5")
    bare, base = tools.read_h5(tmp_path / "bare.h5"), tools.read_safetensors(minilm / "model.safetensors")
    assert bare.keys() == base.keys()  # without a head: named as in the base
    assert np.array_equal(bare["embeddings.position_ids"][1], base["embeddings.position_ids"][1])
    tools.merge({**config, "models": [{"model": one}]}, tmp_path / "one.h5")
    assert "bert.embeddings.position_ids" in tools.read_h5(tmp_path / "one.h5")
    found = json.loads(tools.run(tools.INSPECT, one, "--against", minilm, "--json").out)
    assert found["against"]["only_in_model"] == ["classifier.bias", "classifier.weight"]
    assert found["against"]["only_in_base"] == ["bert.embeddings.position_ids"]


# ---- the scripts ----

PAGE = """.\\" A comment
.TH READ 2
.SH NAME
read \\- read from a file
.SH DESCRIPTION
.B read ()
attempts to read up to \\fIcount\\fP bytes from the file\\-descriptor
.IR fd ,
into the buffer that starts at
.I buf
"""
PAGE_TEXT = "read () attempts to read up to count bytes from the file-descriptor fd, into the buffer that starts at buf"


def write_page(root, language, section, name, text):
    folder = root / "usr/share/man" / ("" if language == "en" else language) / f"man{section}"
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{name}.{section}.gz", "wt") as file:
        file.write(text)


def made_up(rng, words, count):
    return " ".join(rng.choice(words) for _ in range(count))


def write_root(root):
    """Twenty pages of each section and language, and thirty files of code, of words that tell their class."""
    rng = random.Random(1)
    for language in minilm_texts.LANGUAGES:
        for section in minilm_texts.SECTIONS if language == "en" else ["1"]:
            for i in range(20):
                parts = [f".TH x {section}"]
                for heading in minilm_texts.HEADINGS:
                    words = [f"{w}{heading[:2].lower()}{language}{chr(96 + int(section))}" for w in ("alpha", "beta", "gamma", "delta", "omega")]
                    parts.append(f".SH {heading}\n{made_up(rng, words, 50)}")
                write_page(root, language, section, f"page{section}{i}", "\n".join(parts) + "\n")
    files = {"c": "linux/{}.h", "shell": "completions/{}", "c++": "{}", "go": "{}.go", "javascript": "{}.js", "perl": "{}.pm",
             "php": "{}.php", "python": "{}.py", "ruby": "{}.rb", "rust": "{}.rs", "tcl": "{}.tcl"}  # fmt: skip
    for language, (folder, _) in minilm_texts.CODE.items():
        for i in range(30):
            path = root / folder / files[language].format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{language} {i} {k} {made_up(rng, ['if', 'for', 'end', 'x'], 5)}" for k in range(20)]
            path.write_text("\n".join(["/* a comment that is left", "out */", "a line of all documents", *lines]))


def read_rows(folder, task, split):
    return [json.loads(line) for line in (folder / f"texts/{task}-{split}.jsonl").read_text().splitlines()]


def test_reading_a_page(tmp_path):
    write_page(tmp_path, "en", "2", "read", PAGE)
    ((name, section, parts),) = minilm_texts.pages(tmp_path, "en")
    assert (name, section) == ("read", "2")
    assert parts == [("NAME", "read - read from a file"), ("DESCRIPTION", PAGE_TEXT)]


@pytest.fixture(scope="module")
def study(minilm, tmp_path_factory):
    """A tiny random BERT without a prefix, and what two steps make of it."""
    folder = tmp_path_factory.mktemp("study")
    write_root(folder / "root")
    minilm_texts.make_texts(folder / "root", folder, {"train": 120, "calibration": 24, "test": 24})
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
                                     vocab_size=30522, max_position_embeddings=40)  # fmt: skip
    torch.manual_seed(1)
    transformers.BertModel(config).save_pretrained(folder / "tiny")
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(folder / "tiny")
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(folder / "tiny")
    minilm_tune.make_data(folder / "tiny", folder, minilm_texts.TASKS)
    for task, classes in minilm_texts.TASKS.items():
        minilm_tune.make_model(folder / "tiny", folder, task, classes, steps=2)
    return folder


def test_splits_share_no_document_and_no_passage(study):
    for task, classes in minilm_texts.TASKS.items():
        rows = {split: read_rows(study, task, split) for split in ("train", "calibration", "test")}
        assert {row["label"] for row in rows["train"]} == set(range(len(classes)))
        for split, others in rows.items():
            assert len({row["text"] for row in others}) == len(others) > 0
            for other in rows:
                for key in ("source", "text"):
                    assert other == split or not {r[key] for r in others} & {r[key] for r in rows[other]}, (task, split, other)
    assert not [r for r in read_rows(study, "code", "train") if "comment" in r["text"] or "all documents" in r["text"]]


def test_tuned_models_and_the_table(study, monkeypatch, capsys):
    with h5py.File(study / "calibration.h5") as file:
        assert sorted(file) == sorted(minilm_texts.TASKS)
        assert file["code/input_ids"].shape[1] <= minilm_tune.LENGTH
    inputs = {"input_ids": texts.random_ids(30522, rows=3, tokens=9)}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(study / "models/code").eval()
    log_probabilities = texts.class_log_probabilities(model, inputs)
    assert np.isfinite(log_probabilities).all() and model.config.id2label[10] == "tcl"
    base = transformers.AutoModel.from_pretrained(study / "tiny")
    assert not torch.equal(model.bert.pooler.dense.weight.float(), base.pooler.dense.weight)
    monkeypatch.setattr(minilm_study, "GRIDS", {"task_arithmetic": ("task_arithmetic", {"weight": 1}, "lambda", [0.2, 1.0])})
    monkeypatch.setattr(minilm_study, "SEARCHES", {"nps_fuse": {"stages": ["fuse"], "generations": 1, "population": 2}})
    monkeypatch.setattr(minilm_study, "ENVIRONMENT", tools.environment())
    monkeypatch.setattr(sys, "argv", ["minilm_study.py", str(study)])
    minilm_study.main()
    table = capsys.readouterr().out.split("test data")[1]
    rows = [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| ")]
    assert rows[:3] == ["model", "base", "fine-tuned, each for its task"]
    assert rows[-3:] == ["task_arithmetic", "nps_fuse", "compression, each for its task"]
    scores = json.loads((study / "scores.json").read_text())
    own = tools.evaluate(study / "models/code", "--data", study / "test.h5", "--group", "code")["tasks"]["code"]
    assert scores["models/code test"]["code"]["nll"] == own["nll"]
