"""Networks against transformers: tiny random ones, and the example family.

A sample's log-probabilities are what nps-eval gives as nll for every label it could have: one group a sample and label.
"""

import json
import os

import h5py
import numpy as np
import pytest
import tools

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FAMILY = tools.MODELS / "digits-vit"
TASKS = tools.TASKS["digits-vit"]
PARTS = {"cal": FAMILY / "calibration.h5", "test": FAMILY / "test.h5"}
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "image_size": 8,
    "patch_size": 4, "num_channels": 2, "num_labels": 5,
}  # fmt: skip

CONFIGS = {
    "defaults": {},
    "one layer": {"num_hidden_layers": 1, "layer_norm_eps": 0.1},
    "no bias": {"qkv_bias": False},
    "sizes as lists": {"image_size": [8, 12], "patch_size": [4, 2]},
    "patches that do not fill the image": {"image_size": [11, 9], "patch_size": 4},
    "odd sizes": {"hidden_size": 51, "num_attention_heads": 3, "intermediate_size": 7, "num_channels": 3},
    "many tokens": {"image_size": [10, 14], "patch_size": [2, 1]},
    "one patch": {"image_size": 4, "num_attention_heads": 1, "num_labels": 2},
    **{name: {"hidden_act": name} for name in (
        "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_fast", "quick_gelu",
        "silu", "swish", "relu",
    )},
}  # fmt: skip


def random_model(seed=1, **changes):
    torch.manual_seed(seed)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    return model


def random_images(config, samples=3):
    sizes = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
    return np.random.default_rng(2).standard_normal((samples, config.num_channels, *sizes)).astype(np.float32)


def expected(model, images):
    with torch.no_grad():
        logits = model.double()(torch.from_numpy(images).double()).logits
        return torch.log_softmax(logits, -1).numpy()


def log_probabilities(folder, images, labels, path, *options):
    with h5py.File(path, "w") as file:
        for i, image in enumerate(images):
            for label in range(labels):
                file[f"{i}-{label}/inputs"] = image[None]
                file[f"{i}-{label}/labels"] = np.array([label], np.int32)
    tasks = tools.evaluate(folder, "--data", path, *options)["tasks"]
    return np.array([[-tasks[f"{i}-{label}"]["nll"] for label in range(labels)] for i in range(len(images))])


def check(model, folder, tmp_path, *options):
    images, labels = random_images(model.config), model.config.num_labels
    want = expected(model, images)
    tools.check_log_probabilities(log_probabilities(folder, images, labels, tmp_path / "data.h5", *options), want)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_networks(name, tmp_path):
    model = random_model(**CONFIGS[name])
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path)


def test_stored_in_bfloat16(tmp_path):
    model = random_model().bfloat16()
    model.save_pretrained(tmp_path / "model")
    check(model, tmp_path / "model", tmp_path)


def test_a_bare_body_with_a_pooler_takes_its_head_elsewhere(tmp_path):
    model, other = random_model(), random_model(seed=3)
    body = transformers.ViTModel(model.config, add_pooling_layer=True)
    body.load_state_dict({**body.state_dict(), **model.vit.state_dict()})
    body.save_pretrained(tmp_path / "body")
    other.save_pretrained(tmp_path / "other")
    model.classifier = other.classifier
    check(model, tmp_path / "body", tmp_path, "--head", tmp_path / "other")


def test_a_given_head_comes_before_the_models_own(tmp_path):
    model, other = random_model(), random_model(seed=3)
    model.save_pretrained(tmp_path / "model")
    other.save_pretrained(tmp_path / "other")
    model.classifier = other.classifier
    check(model, tmp_path / "model", tmp_path, "--head", tmp_path / "other")


# ---- the example family ---------------------------------------------------------------------------------------------


def accuracies(tasks):
    return {name: task["accuracy"] for name, task in tasks.items()}


@pytest.mark.parametrize("part", PARTS)
def test_recorded_accuracies(part):
    """Within one sample: another order of sums may turn one that hangs in the balance."""
    recorded = json.loads((FAMILY / "expected.json").read_text())["tasks"]
    heads = [word for task in TASKS for word in ("--head", f"{task}={FAMILY / task}")]
    base = tools.evaluate(FAMILY / "base", "--data", PARTS[part], *heads)["tasks"]
    for task in TASKS:
        tuned = tools.evaluate(FAMILY / task, "--data", PARTS[part], "--group", task)["tasks"][task]
        for kind, found in (("base", base[task]), ("finetuned", tuned)):
            want = recorded[task][part]
            assert found["total"] == want["n"]
            assert abs(found["correct"] - want[kind] * want["n"]) <= 1 + 1e-3, (task, kind)
            assert found["accuracy"] == found["correct"] / found["total"]


@pytest.mark.parametrize("task", ["plain", "noise", "blur"])
def test_the_nll_is_that_of_torch(task):
    model = transformers.ViTForImageClassification.from_pretrained(FAMILY / task).eval()
    base = transformers.ViTForImageClassification.from_pretrained(FAMILY / "base").eval()
    base.classifier = model.classifier
    with h5py.File(PARTS["cal"]) as file:
        images, labels = torch.from_numpy(file[task]["inputs"][:]), torch.from_numpy(file[task]["labels"][:]).long()
    for network, arguments in ((model, [FAMILY / task]), (base, [FAMILY / "base", "--head", FAMILY / task])):
        with torch.no_grad():
            want = float(torch.nn.functional.cross_entropy(network(images).logits, labels))
        for batch in (1, 64, 4096):
            options = ("--data", PARTS["cal"], "--group", task, "--batch", batch)
            assert tools.evaluate(*arguments, *options)["tasks"][task]["nll"] == pytest.approx(want, abs=1e-4)
