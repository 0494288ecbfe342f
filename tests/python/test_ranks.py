"""Any number of ranks gives the same bytes, for every method, both output forms, and slabs of any size."""

import re

import numpy as np
import pytest
import tools

RANKS = [1, 2, 3, 4, 8]

METHODS = {
    "linear": ({}, {"weight": 0.7}),
    "task_arithmetic": ({"lambda": 0.3}, {"weight": 0.7}),
    "ties": ({"density": 0.3}, {"weight": 0.7}),
    "ties, model": ({"density": 0.3, "scope": "model"}, {"weight": 0.7}),
    "ties, all kept": ({"density": 1}, {"weight": 0.7}),
    "dare_linear": ({"density": 0.4}, {"weight": 0.7}),
    "dare_ties": ({"density": 0.4, "rescale": "expectation"}, {"weight": 0.7}),
    "dare_ties, L1": ({"density": 0.4, "rescale": True}, {"weight": 0.7}),
    "breadcrumbs": ({"density": 0.6, "gamma": 0.1}, {"weight": 0.7}),
    "della": ({"density": 0.4}, {"weight": 0.7}),
    "sce": ({"select_topk": 0.3}, None),
    "ramplus_tl": ({"epsilon": 0.02}, None),
    "slerp": ({"t": 0.4}, None),
    "karcher": ({}, None),
    "model_stock, rows": ({"filter_wise": True}, None),
    "arcee_fusion": ({}, None),
    "passthrough": ({}, {"scale": 0.9}),
}

MOST_MODELS = {"slerp": 1, "arcee_fusion": 1, "passthrough": 1}


def config_of(family, case, **more):
    parameters, each = METHODS[case]
    method = case.split(",")[0]
    names = tools.TASKS[family][: MOST_MODELS.get(method)]
    return tools.recipe(family, method, parameters, each, names=names, seed=7, **more)


@pytest.mark.parametrize("out", ["out.h5", "out"])
@pytest.mark.parametrize("case", METHODS)
def test_ranks_give_the_same_bytes(case, out, tmp_path):
    """A file and a folder of several shards; the vision family has small tensors, 8 ranks share some of them."""
    first = None
    config = config_of("digits-vit", case, output={"shard_size": "500KB"})
    for ranks in RANKS:
        folder = tmp_path / str(ranks)
        folder.mkdir()
        tools.merge(config, folder / out, ranks=ranks)
        tensors = tools.read_model(folder / out)
        first = first or tensors
        assert tools.same_tensors(first, tensors), f"{ranks} ranks differ from {RANKS[0]}"
    if out == "out":
        assert len(list((tmp_path / "8/out").glob("model-*.safetensors"))) > 2


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """Three models with a tensor of many blocks, one of odd size, one whose rows and blocks end together half-way, more
    than that of small ones, and equal magnitudes."""
    folder = tmp_path_factory.mktemp("big")
    random = np.random.default_rng(11)
    shapes = {"b.wide": (1100, 1000), "a.odd": (65536 * 3 + 17,), "c.block": (65536,), "c.rows": (1024, 384), "d.tiny": (3,), "e.scalar": ()}
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    for model in ("base", "x", "y", "z"):
        tensors = {}
        for name, value in base.items():
            step = random.integers(-3, 4, value.shape).astype(np.float32) / 64
            tensors[name] = ("BF16", tools.bf16_bits(value if model == "base" else value + step))
        tools.write_folder(folder / model, tensors)
    return folder


def merge_with_least_memory(config, out, *options, ranks=0):
    """Merge with no more memory than the program says it needs. The MPI library takes more with more ranks, and
    sometimes a step more in one run than in another: then the program asks for more, and gets it."""
    memory = 1
    for _ in range(5):
        limited = {**config, "resources": {"memory_per_rank": f"{memory}MiB"}}
        result = tools.merge(limited, out, *options, ranks=ranks, code=None)
        if result.code == 0:
            assert memory > 1, "a merge in 1 MiB"
            return result
        found = re.search(r"needs at least ([0-9.]+) MiB a rank", result.err)
        assert found, result
        memory = float(found.group(1)) + 0.1
    raise AssertionError(f"asks for more each time: {result}")


@pytest.mark.parametrize("case", METHODS)
def test_slabs_give_the_same_bytes(case, big, tmp_path):
    """With the least memory a piece is read in many slabs, and again for each pass over it."""
    parameters, each = METHODS[case]
    method = case.split(",")[0]
    models = [{"model": str(big / m), **({"parameters": each} if each else {})} for m in ("x", "y", "z")]
    models = models[: MOST_MODELS.get(method)]
    config = {"merge_method": method, "base_model": str(big / "base"), "models": models, "parameters": parameters}
    first = None
    for ranks, memory in [(1, "auto"), (1, "least"), (3, "least"), (8, "least"), (2, "200MiB")]:
        out = tmp_path / f"{ranks}-{memory}.h5"
        if memory == "least":
            merge_with_least_memory(config, out, ranks=ranks)
        else:
            tools.merge({**config, "resources": {"memory_per_rank": memory}}, out, ranks=ranks)
        tensors = tools.read_model(out)
        first = first or tensors
        assert tools.same_tensors(first, tensors), f"{ranks} ranks with {memory} differ"


def test_slab_size_is_as_small_as_it_can_be(big, tmp_path):
    """The case above is about slabs only while the least memory leads to slabs of one block."""
    models = [{"model": str(big / m), "parameters": {"weight": 1, "density": 0.5}} for m in ("x", "y", "z")]
    config = {"merge_method": "ties", "base_model": str(big / "base"), "models": models}
    result = merge_with_least_memory(config, tmp_path / "out.h5", "--plan")
    assert "slabs of 65536 elements" in result.out, result


def test_ranks_that_have_nothing_to_count(tmp_path):
    """A model of one block: only one rank sees entries when the threshold of the whole model is found."""
    random = np.random.default_rng(5)
    base = {"only": random.standard_normal((40, 50)).astype(np.float32)}
    for model in ("base", "x", "y"):
        step = 0 if model == "base" else random.standard_normal((40, 50)) * 2.0 ** random.integers(-9, 3, (40, 50))
        tools.write_folder(tmp_path / model, {"only": ("F32", (base["only"] + step).astype(np.float32))})
    config = {"merge_method": "ties", "base_model": str(tmp_path / "base"), "dtype": "float32",
              "models": [{"model": str(tmp_path / m)} for m in ("x", "y")],
              "parameters": {"weight": 1, "density": 0.3, "scope": "model"}}  # fmt: skip
    for method, parameters in (("ties", config["parameters"]), ("nps", {})):
        config = {**config, "merge_method": method, "parameters": parameters}
        if method == "nps":
            config["nps"] = {"density": 0.3, "subspaces": 4, "weights": [0.5, 1, 1.5, 2]}
        first = None
        for ranks in (1, 3, 5):
            tools.merge(config, tmp_path / "out.h5", "--force", ranks=ranks)
            merged = tools.read_model(tmp_path / "out.h5")
            first = first or merged
            assert tools.same_tensors(first, merged), f"{method}: {ranks} ranks differ"
