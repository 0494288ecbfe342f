"""fitness.sharpness: a candidate's score is the mean over random perturbations of its weights, against NumPy."""

import h5py
import numpy as np
import oracle
import pytest
import tools

SAMPLES, RHO, SEED = 3, 0.2, 5


def perturbed(name, x, sample):
    """θ (1 ± ρ): the signs are the bits of the random stream of the tensor and the sample."""
    words = oracle.random_words(SEED ^ oracle.fnv1a(name), 2**31 + sample, (x.size + 31) // 32)
    bits = (words[:, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
    up = bits.reshape(-1)[: x.size].reshape(x.shape).astype(bool)
    return (x * np.where(up, np.float32(1 + RHO), np.float32(1 - RHO))).astype(np.float32)


def config_of(data, **search):
    """All entries are kept with weight 1: a candidate is task arithmetic with its λ."""
    config = tools.small_search(data, stages=["fuse"], generations=2, **search)
    config["nps"] = {"subspaces": 1, "density": 1}
    config["fitness"]["sharpness"] = {"samples": SAMPLES, "rho": RHO}
    return config


@pytest.fixture(scope="module")
def searched(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("searched") / "out.h5"
    tools.merge(config_of(data), out)
    return out


def test_the_score_is_the_sum_over_perturbed_models(searched, data, tmp_path):
    base = {n: tools.values(t) for n, t in tools.read_model(tools.SMALL_SEARCH / "base").items()}
    tuned = [{n: tools.values(t) for n, t in tools.read_model(tools.SMALL_SEARCH / t).items()}
             for t in tools.SMALL_SEARCH_TASKS]  # fmt: skip
    with h5py.File(searched) as file:
        group = file["search/fuse"]
        rows = {k: group[k][:] for k in ("genome", "correct", "total", "nll_sum")}
    text = (tools.SMALL_SEARCH / "base/config.json").read_text()
    for row in (0, 12):
        found = np.zeros((len(tools.SMALL_SEARCH_TASKS), 3))
        for sample in range(SAMPLES):
            tensors = {}
            for name, x in base.items():
                taus = [t[name].astype(np.float32) - x.astype(np.float32) for t in tuned]
                sums = x.astype(np.float64) + sum(w * t.astype(np.float64) for w, t in zip(rows["genome"][row], taus))
                tensors[name] = ("F32", perturbed(name, sums.astype(np.float32), sample))
            model = tools.write_folder(tmp_path / f"{row}-{sample}", tensors)
            (model / "config.json").write_text(text)
            heads = [w for t in tools.SMALL_SEARCH_TASKS for w in ("--head", f"{t}={tools.SMALL_SEARCH / t}")]
            scores = tools.evaluate(model, "--data", data, *heads)["tasks"]
            for k, task in enumerate(tools.SMALL_SEARCH_TASKS):
                one = scores[task]
                found[k] += one["correct"], one["total"], one["nll"] * one["total"]
        assert np.array_equal(found[:, 1], rows["total"][row])
        assert np.abs(found[:, 0] - rows["correct"][row]).max() <= 1  # one may hang in the balance
        assert np.allclose(found[:, 2], rows["nll_sum"][row], rtol=1e-4)


def test_any_number_of_ranks_gives_the_same_bytes(searched, data, tmp_path):
    for ranks, search in ((3, {}), (2, {"ranks_per_model": 2})):
        tools.merge(config_of(data, **search), tmp_path / f"{ranks}.h5", ranks=ranks)
        assert tools.search_content(tmp_path / f"{ranks}.h5") == tools.search_content(searched)


def test_what_is_written_is_not_perturbed(searched):
    base = tools.read_model(tools.SMALL_SEARCH / "base")
    with h5py.File(searched) as file:
        best = file["search/fuse"].attrs["best"]
        weights = file["search/fuse/genome"][best]
    merged = tools.read_model(searched)
    for name, stored in base.items():
        x = tools.values(stored).astype(np.float64)
        taus = [tools.values(tools.read_model(tools.SMALL_SEARCH / t)[name]) - x for t in tools.SMALL_SEARCH_TASKS]
        assert np.allclose(tools.values(merged[name]), x + sum(w * t for w, t in zip(weights, taus)), atol=1e-5), name
