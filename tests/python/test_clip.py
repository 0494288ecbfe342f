"""CLIP's vision transformer with a head of text features against transformers: tiny random ones, whole and in parts."""

import h5py
import numpy as np
import pytest
import texts
import tools
from texts import torch, transformers

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
