"""CLIP's vision transformer with a head of text features against transformers: tiny random ones, whole and in parts."""

import runpy
import sys

import h5py
import numpy as np
import pytest
import texts
import tools
from texts import torch, transformers

tokenizers = pytest.importorskip("tokenizers")

VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "image_size": 8,
          "patch_size": 4, "projection_dim": 12}  # fmt: skip
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20,
        "projection_dim": 12, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8}  # fmt: skip
CLASSES, SAMPLES = 5, 3

CONFIGS = {
    "defaults": {},
    "one layer": {"num_hidden_layers": 1, "layer_norm_eps": 0.1, "hidden_act": "gelu"},
    "odd sizes": {"hidden_size": 21, "num_attention_heads": 3, "intermediate_size": 7, "num_channels": 2, "image_size": 11},
    "many tokens": {"image_size": 18, "patch_size": 2},
}  # fmt: skip


def random_model(seed=1, **changes):
    config = transformers.CLIPConfig(vision_config={**VISION, **changes}, text_config=TEXT, projection_dim=12)
    model = texts.random_model(transformers.CLIPModel, config, seed, spread=0.4)
    with torch.no_grad():
        model.logit_scale.fill_(1.7)
    return model


def write_inputs(model, tmp_path):
    """Images, tokens of one text a class, and the head of that text."""
    vision = model.config.vision_config
    rng = np.random.default_rng(2)
    images = rng.standard_normal((SAMPLES, vision.num_channels, vision.image_size, vision.image_size)).astype(np.float32)
    with torch.no_grad():
        ids = torch.from_numpy(rng.integers(3, 20, (CLASSES, 6)))
        ids[:, -1] = 2
        model.double()
        logits = model(input_ids=ids, pixel_values=torch.from_numpy(images).double()).logits_per_image
        features = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        head = model.logit_scale.exp() * features / features.norm(dim=-1, keepdim=True)
        model.float()
    tensors = {
        "classifier.weight": ("F32", head.numpy().astype(np.float32)),
        "visual_projection.weight": ("F32", model.visual_projection.weight.detach().numpy().copy()),
    }
    tools.write_folder(tmp_path / "head", tensors, {"model_type": "clip"})
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for i in range(SAMPLES):
            for label in range(CLASSES):
                file[f"{i}-{label}/inputs"] = images[i : i + 1]
                file[f"{i}-{label}/labels"] = np.array([label], np.int32)
        file["all/inputs"], file["all/labels"] = images, np.zeros(SAMPLES, np.int32)
    return torch.log_softmax(logits, -1).numpy()


def check(folder, tmp_path, want):
    tasks = tools.evaluate(folder, "--data", tmp_path / "data.h5", "--head", tmp_path / "head")["tasks"]
    found = np.array([[-tasks[f"{i}-{label}"]["nll"] for label in range(CLASSES)] for i in range(SAMPLES)])
    tools.check_log_probabilities(found, want)
    assert tasks["all"]["nll"] == pytest.approx(-want[:, 0].mean(), abs=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_networks(name, tmp_path):
    model = random_model(**CONFIGS[name])
    want = write_inputs(model, tmp_path)
    model.save_pretrained(tmp_path / "model")
    check(tmp_path / "model", tmp_path, want)


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_the_vision_part_alone(kind, tmp_path):
    model = random_model()
    want = write_inputs(model, tmp_path)
    model.save_pretrained(tmp_path / "model")
    getattr(transformers, kind).from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "part")
    check(tmp_path / "part", tmp_path, want)


def test_a_head_is_needed(tmp_path):
    model = random_model()
    write_inputs(model, tmp_path)
    model.save_pretrained(tmp_path / "model")
    result = tools.run(tools.EVAL, tmp_path / "model", "--data", tmp_path / "data.h5")
    assert result.code == 3 and "needs tensor classifier.weight, which is not there; a head model can give it" in result.err


# ---- tools/clip_head.py ----

WORDS = "[PAD] [BOS] [EOS] a photo drawing of the cat dog red".split()
TEMPLATES = ["a photo of a {}", "the drawing of the red {}"]


def save_with_tokenizer(model, folder):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    model.save_pretrained(folder)


def make_head(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["clip_head.py", *map(str, words)])
    runpy.run_path(str(tools.ROOT / "tools/clip_head.py"), run_name="__main__")


def image_logits(model, images, text):
    """logits_per_image of transformers, in float64."""
    ids = torch.tensor([[1, *(WORDS.index(word) for word in text.split()), 2]])
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=torch.from_numpy(images).double()).logits_per_image[:, 0]


def test_a_head_of_one_text_a_class(monkeypatch, tmp_path):
    model = random_model()
    write_inputs(model, tmp_path)
    with torch.no_grad():
        model.logit_scale.fill_(3)
    save_with_tokenizer(model, tmp_path / "model")
    make_head(monkeypatch, "--model", tmp_path / "model", "--out", tmp_path / "own", "--template", "a photo of the {}",
              "cat", "dog", "red dog")  # fmt: skip
    with h5py.File(tmp_path / "data.h5") as file:
        images = file["all/inputs"][:]
    model.double()
    want = torch.stack([image_logits(model, images, f"a photo of the {name}") for name in ("cat", "dog", "red dog")], -1)
    want = torch.log_softmax(want, -1).numpy()
    found = np.empty_like(want)
    for label in range(3):
        with h5py.File(tmp_path / f"{label}.h5", "w") as file:
            for i in range(SAMPLES):
                file[f"{i}/inputs"], file[f"{i}/labels"] = images[i : i + 1], np.array([label], np.int32)
        tasks = tools.evaluate(tmp_path / "model", "--data", tmp_path / f"{label}.h5", "--head", tmp_path / "own")["tasks"]
        found[:, label] = [-tasks[str(i)]["nll"] for i in range(SAMPLES)]
    tools.check_log_probabilities(found, want)


def test_a_head_of_several_texts_a_class(monkeypatch, tmp_path):
    model = random_model()
    save_with_tokenizer(model, tmp_path / "model")
    templates = [word for template in TEMPLATES for word in ("--template", template)]
    make_head(monkeypatch, "--model", tmp_path / "model", "--out", tmp_path / "own", *templates, "cat", "dog")
    _, head = tools.read_model(tmp_path / "own")["classifier.weight"]
    for row, name in zip(head, ("cat", "dog")):
        features = []
        for template in TEMPLATES:
            ids = torch.tensor([[1, *(WORDS.index(word) for word in template.format(name).split()), 2]])
            with torch.no_grad():
                x = model.text_projection(model.text_model(input_ids=ids).pooler_output)[0].numpy()
            features.append(x / np.linalg.norm(x))
        mean = np.mean(features, axis=0)
        np.testing.assert_allclose(row, np.exp(1.7) * mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words, message", [
    (["--template", "a photo"], "expected a place for the class"),
    (["--out", "model"], "is there already"),
    (["--model", "nowhere"], "nowhere"),
    (["the " * 9], "is longer than the 8 tokens"),
])  # fmt: skip
def test_heads_that_cannot_be_made(words, message, monkeypatch, tmp_path, capsys):
    save_with_tokenizer(random_model(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as failed:
        make_head(monkeypatch, "--model", "model", "--out", "own", *words, "cat")
    assert message in f"{failed.value.code}{capsys.readouterr().err}"
