"""Tensors that ranks share, and models that are given more than once."""

import numpy as np
import pytest
import tools

BLOCK = 65536


def write_models(folder, bad=None):
    """A base and two models of three tensors, each of which 8 ranks share; `bad`: (tensor, index) that holds NaN."""
    rng = np.random.default_rng(1)
    base = {name: rng.standard_normal(6 * BLOCK + 7).astype(np.float32) for name in "abc"}
    tools.write_folder(folder / "base", {n: ("F32", x) for n, x in base.items()})
    for model in "xy":
        tuned = {n: x + rng.standard_normal(x.size).astype(np.float32) for n, x in base.items()}
        if bad and model == "y":
            tuned[bad[0]][bad[1]] = np.nan
        tools.write_folder(folder / model, {n: ("F32", x) for n, x in tuned.items()})


def config(folder, method, models=("x", "y"), base="base", **parameters):
    entries = [{"model": f"{folder}/{m}", "name": f"m{i}", "parameters": {"weight": 1}} for i, m in enumerate(models)]
    return {
        "merge_method": method, "base_model": f"{folder}/{base}", "models": entries, "parameters": parameters
    }  # fmt: skip


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("bad", [("a", 0), ("b", 3 * BLOCK + 5), ("c", 6 * BLOCK + 6)])
def test_a_failing_rank_ends_all(ranks, bad, tmp_path):
    """Whatever rank meets the NaN, and in whatever tensor it shares: one message, nobody waits."""
    write_models(tmp_path, bad)
    path = tools.write_config(tmp_path / "c.yaml", config(tmp_path, "ties", density=0.5))
    result = tools.run(tools.MERGE, path, tmp_path / "out.h5", ranks=ranks, limit=60)
    assert result.code == 3, result
    assert result.err.count(f"tensor {bad[0]} holds NaN at index {bad[1]}") == 1, result
    assert not list(tmp_path.glob("*out.h5*")), result


@pytest.mark.parametrize("method", ["ties", "dare_ties", "slerp"])
def test_shared_tensors_are_the_same_bytes(method, tmp_path):
    write_models(tmp_path)
    models, values = (("x",), {"t": 0.3}) if method == "slerp" else (("x", "y"), {"density": 0.3})
    outputs = []
    for ranks in (1, 2, 5, 8):
        out = tmp_path / f"out{ranks}.h5"
        tools.merge(config(tmp_path, method, models, **values), out, ranks=ranks)
        outputs.append(tools.read_model(out))
    for other in outputs[1:]:
        assert tools.same_tensors(outputs[0], other)


@pytest.mark.parametrize("spelling", ["base/", "x/../base", "link"])
def test_the_base_is_known_by_any_path(spelling, tmp_path):
    """Listed among the models it is no task vector, however it is written."""
    write_models(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "base")
    parameters = {"normalize": True}
    tools.merge(config(tmp_path, "task_arithmetic", ("x",), **parameters), tmp_path / "without.h5")
    tools.merge(config(tmp_path, "task_arithmetic", (spelling, "x"), **parameters), tmp_path / "with.h5")
    assert tools.same_tensors(tools.read_model(tmp_path / "without.h5"), tools.read_model(tmp_path / "with.h5"))


def test_an_input_is_never_replaced(tmp_path):
    write_models(tmp_path)
    path = tools.write_config(tmp_path / "c.yaml", config(tmp_path, "task_arithmetic"))
    result = tools.run(tools.MERGE, path, tmp_path / "base", "--force")
    assert result.code == 2 and "would replace one of the inputs" in result.err, result
    assert (tmp_path / "base/model.safetensors").exists()
