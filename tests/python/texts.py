"""What the tests of networks of texts share: tiny random models, texts, and log-probabilities by transformers and by nps-eval.

The log-probabilities of every token at every place are what nps-eval gives as nll where only that place is asked for that
token: one group a row, place and token.
"""

import os

import h5py
import numpy as np
import pytest
import tools

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # the networks are tiny
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def random_model(model_class, config, seed=1, spread=0.3):
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, spread)
    return model


def random_ids(vocabulary, rows=2, tokens=9, seed=3):
    return np.random.default_rng(seed).integers(0, vocabulary, (rows, tokens)).astype(np.int32)


def write(path, groups):
    """{name: (datasets, metric)}"""
    with h5py.File(path, "w") as file:
        for name, (data, metric) in groups.items():
            for key, value in data.items():
                file[f"{name}/{key}"] = value
            if metric:
                file[name].attrs["metric"] = metric


def expected(model, ids):
    """[rows][tokens − 1][vocabulary] log-probabilities in float64."""
    with torch.no_grad():
        logits = model.double()(torch.from_numpy(ids).long()).logits
        return torch.log_softmax(logits, -1).numpy()[:, :-1]


def log_probabilities(folder, ids, classes, path):
    """[rows][tokens − 1][classes]: of some tokens at every place."""
    rows, tokens = ids.shape
    places = [(r, p, t) for r in range(rows) for p in range(tokens - 1) for t in classes]
    with h5py.File(path, "w") as file:
        for r, p, t in places:
            labels = np.full((1, tokens), -100, np.int32)
            labels[0, p + 1] = t
            file[f"{r}-{p}-{t}/input_ids"] = ids[r : r + 1]
            file[f"{r}-{p}-{t}/labels"] = labels
    found = tools.evaluate(folder, "--data", path)["tasks"]
    values = [-found[f"{r}-{p}-{t}"]["nll"] for r, p, t in places]
    return np.array(values).reshape(rows, tokens - 1, len(classes))


def check(model, folder, tmp_path, rows=2, tokens=9, classes=None):
    """Some tokens, or all, at every place."""
    vocabulary = model.config.vocab_size
    ids = random_ids(vocabulary, rows, tokens)
    classes = classes or list(range(vocabulary))
    want = expected(model, ids)[:, :, classes]
    tools.check_log_probabilities(log_probabilities(folder, ids, classes, tmp_path / "data.h5"), want)


def check_long(model, folder, tmp_path):
    """More positions than the kernel takes at once; padding on either side is neither seen nor asked for."""
    ids = random_ids(model.config.vocab_size, rows=3, tokens=150)
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
        found = tools.evaluate(folder, "--data", tmp_path / "data.h5", "--batch", batch)["tasks"]
        for name, (correct, total, nll) in want.items():
            assert (found[name]["correct"], found[name]["total"]) == (correct, total)
            assert found[name]["nll"] == pytest.approx(nll, abs=1e-5)


def class_log_probabilities(model, inputs):
    """[texts][classes] of a classifier, in float64. inputs: {name: [texts][tokens]}"""
    with torch.no_grad():
        logits = model.double()(**{name: torch.from_numpy(value).long() for name, value in inputs.items()}).logits
        return torch.log_softmax(logits, -1).numpy()


def check_classifier(inputs, want, folder, path, *options):
    """Every class of every text alone, and all texts in one batch. path: of the data that are written"""
    count, labels = want.shape
    with h5py.File(path, "w") as file:
        for label in range(labels):
            for name, value in inputs.items():
                file[f"all-{label}/{name}"] = value
            file[f"all-{label}/labels"] = np.full(count, label, np.int32)
        for i in range(count):
            for label in range(labels):
                for name, value in inputs.items():
                    file[f"{i}-{label}/{name}"] = value[i : i + 1]
                file[f"{i}-{label}/labels"] = np.array([label], np.int32)
    tasks = tools.evaluate(folder, "--data", path, *options)["tasks"]
    found = np.array([[-tasks[f"{i}-{label}"]["nll"] for label in range(labels)] for i in range(count)])
    tools.check_log_probabilities(found, want)
    for label in range(labels):
        assert tasks[f"all-{label}"]["nll"] == pytest.approx(-want[:, label].mean(), abs=1e-4)
        assert tasks[f"all-{label}"]["correct"] == (want.argmax(-1) == label).sum()
