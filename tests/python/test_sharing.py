"""Searches whose models lie on several ranks, layer by layer: the same bytes as on one, whatever the ranks and groups."""

import json
import struct

import h5py
import pytest
import tools

VIT, TEXTS = "digits-vit", "bytes-llama"
LEGAL = ["legal"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few samples of each task."""
    path = tmp_path_factory.mktemp("data") / "few.h5"
    with h5py.File(path, "w") as target:
        for family, count in ((VIT, 40), (TEXTS, 6)):
            with h5py.File(tools.MODELS / family / "calibration.h5") as source:
                for task, group in source.items():
                    for key, values in group.items():
                        target[f"{task}/{key}"] = values[:count]
    return path


def search_of(data, family, names, batch, nps=None, **search):
    config = tools.recipe(family, "nps", names=names)
    config["nps"] = {"subspaces": 4, "density": 0.1, **(nps or {})}
    config["search"] = {"stages": ["prune"], "generations": 1, "population": 3, "final": "best", **search}
    tasks = [{"name": name, "data": str(data)} for name in names]
    config["fitness"] = {"metric": "nll", "batch": batch, "holdout": 0, "tasks": tasks}
    return config


CASES = {
    "vit": ((VIT, ["plain", "rot90"], 8), {}, [(2, 2), (5, 2), (8, 4)]),
    "vit, each tensor by itself": ((VIT, ["plain"], 8, {"scope": "tensor"}), {}, [(3, 3)]),
    "vit, singular": ((VIT, ["plain"], 8, {"partition": "singular"}), {}, [(3, 2)]),
    "llama": ((TEXTS, LEGAL, 2), {}, [(1, 4), (4, 2), (8, 8)]),
    "llama, singular": ((TEXTS, LEGAL, 2, {"partition": "singular"}), {"stages": ["joint"]}, [(4, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_same_bytes(case, data, tmp_path):
    what, search, others = CASES[case]
    config = search_of(data, *what, **search)
    tools.merge(config, tmp_path / "one.h5")
    expected = tools.search_content(tmp_path / "one.h5")
    for ranks, size in others:
        config["search"]["ranks_per_model"] = size
        out = tmp_path / f"{ranks}-{size}.h5"
        tools.merge(config, out, ranks=ranks)
        assert tools.search_content(out) == expected, (ranks, size)


def test_going_on_with_other_groups(data, tmp_path):
    """A search that ended after one generation goes on with two ranks a model."""
    config = search_of(data, VIT, ["plain"], 8, generations=2)
    tools.merge(config, tmp_path / "whole.h5")
    config["search"].update(generations=1, snapshot=str(tmp_path / "kept.h5"))
    tools.merge(config, tmp_path / "first.h5")
    config["search"].update(generations=2, ranks_per_model=2)
    tools.merge(config, tmp_path / "second.h5", "--resume", ranks=3)
    assert tools.search_content(tmp_path / "second.h5") == tools.search_content(tmp_path / "whole.h5")


def shape_of_a_large_model(folder):
    """The example's layers, so many and so wide that each takes 25 MB; nothing but the headers is read."""
    config = json.loads((tools.MODELS / VIT / "base" / "config.json").read_text())
    config.update(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8)
    hidden, inner, patches = 1024, 4096, (config["image_size"] // config["patch_size"]) ** 2
    tensors = {
        "embeddings.cls_token": [1, 1, hidden], "embeddings.position_embeddings": [1, patches + 1, hidden],
        "embeddings.patch_embeddings.projection.weight": [hidden, config["num_channels"], *[config["patch_size"]] * 2],
        "embeddings.patch_embeddings.projection.bias": [hidden], "layernorm.weight": [hidden], "layernorm.bias": [hidden],
    }  # fmt: skip
    linear = {
        "attention.attention.query": (hidden, hidden), "attention.attention.key": (hidden, hidden),
        "attention.attention.value": (hidden, hidden), "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden), "output.dense": (hidden, inner),
    }  # fmt: skip
    for layer in range(8):
        for name, (out, into) in linear.items():
            tensors[f"encoder.layer.{layer}.{name}.weight"] = [out, into]
            tensors[f"encoder.layer.{layer}.{name}.bias"] = [out]
        for name in ("layernorm_before", "layernorm_after"):
            tensors[f"encoder.layer.{layer}.{name}.weight"] = tensors[f"encoder.layer.{layer}.{name}.bias"] = [hidden]
    for name, head in (("base", {}), ("plain", {"classifier.weight": [10, hidden], "classifier.bias": [10]})):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        header, at = {}, 0
        for key, shape in {**{f"vit.{k}": v for k, v in tensors.items()}, **head}.items():
            size = 2
            for extent in shape:
                size *= extent
            header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with open(folder / name / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)


def test_as_few_ranks_as_memory_allows(data, tmp_path):
    """Eight layers of 2 × 25 MB: 403 MB on one rank, 202 MB on each of two, 151 MB on the fullest of three; besides 50 MB for a
    layer in float32, and the states of batches."""
    shape_of_a_large_model(tmp_path)

    def plan(limit, ranks, code=0, **search):
        config = search_of(data, VIT, ["plain"], 32, **search)
        config.update(base_model=str(tmp_path / "base"), models=[{"model": str(tmp_path / "plain")}])
        config["resources"] = {"memory_per_rank": limit}
        return tools.merge(config, tmp_path / "out.h5", "--plan", "--ranks", ranks, code=code)

    assert "ranks per model: 1, every rank holds all models" in plan("600MB", 8).out
    two = plan("400MB", 8).out
    assert "ranks per model: 2, in 4 groups\n" in two
    assert "rank 1 of a group: the embedding, layers 1 to 4: " in two and "rank 2 of a group: layers 5 to 8, the head: " in two
    assert "ranks per model: 3, in 2 groups, some of more ranks" in plan("260MB", 8).out
    assert "ranks per model: 2, in 1 group\n" in plan("600MB", 2, ranks_per_model=4).out
    few = plan("400MB", 1, code=2).err
    assert "the search needs" in few and "with 2 ranks a model (search.ranks_per_model) it fits: use more ranks" in few
    assert "one layer on each rank would need more, too" in plan("60MB", 8, code=2).err
