"""OPCM in separate runs: the state in the output is right, and models merged later give what one run gives."""

import hashlib
import shutil

import h5py
import numpy as np
import pytest
import tools


def config(base, models, **parameters):
    return {"merge_method": "opcm", "base_model": str(base), "dtype": "float32", "parameters": parameters,
            "models": [{"model": str(m)} for m in models]}  # fmt: skip


def one_at_a_time(folder, names, work, suffix, ranks=0, **parameters):
    """The last of the outputs, each made from the one before."""
    base = folder / "base"
    for i, name in enumerate(names):
        out = work / f"step{i}{suffix}"
        tools.merge(config(base, [folder / name], **parameters), out, ranks=ranks)
        base = out
    return base


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Three models of a small base with a matrix, a matrix that no model changes, a vector and an integer buffer."""
    folder = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(11)
    shapes = {"m": (24, 40), "same": (10, 12), "v": (33,)}
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    buffer = ("I64", np.arange(5))
    for model in ("base", "x", "y", "z"):
        move = {n: 0 if model == "base" or n == "same" else 0.1 * random.standard_normal(s) for n, s in shapes.items()}
        stored = {n: ("F32", (base[n] + move[n]).astype(np.float32)) for n in shapes}
        tools.write_folder(folder / model, {**stored, "ids": buffer}, shards=2 if model == "base" else 1)
    return folder


@pytest.mark.parametrize("family, mode, alpha", [("digits-vit", "block", 0.5), ("bytes-llama", "paper", 0.3),
                                                 ("tiny", "block", 0.8), ("tiny", "paper", 0.5)])  # fmt: skip
def test_separate_runs_give_what_one_run_gives(family, mode, alpha, tiny, tmp_path):
    folder = tiny if family == "tiny" else tools.MODELS / family
    names = ["x", "y", "z"] if family == "tiny" else tools.TASKS[family][:3]
    tools.merge(config(folder / "base", [folder / n for n in names], mode=mode, alpha=alpha), tmp_path / "all.h5")
    whole = tools.read_model(tmp_path / "all.h5")
    last = one_at_a_time(folder, names, tmp_path, ".h5", mode=mode, alpha=alpha)
    drop_heads = lambda tensors: {n: t for n, t in tensors.items() if n in whole}  # a single model lends its head
    assert tools.same_tensors(whole, drop_heads(tools.read_model(last)))
    last = one_at_a_time(folder, names, tmp_path, "-folder", ranks=3, mode=mode, alpha=alpha)
    assert tools.same_tensors(whole, drop_heads(tools.read_model(last))), "through folders on 3 ranks"
    with h5py.File(tmp_path / "all.h5") as a, h5py.File(last / "opcm_state.h5") as b:
        for name, dataset in a["state/opcm/A"].items():
            assert np.array_equal(dataset[()], b["state/opcm/A"][name][()]), name
        for key in ("count", "norm_mean", "alpha", "mode", "base"):
            assert a["state/opcm"].attrs[key] == b["state/opcm"].attrs[key], key


def content_hash(path):
    outer = hashlib.sha256()
    with open(path, "rb") as f:
        while part := f.read(1 << 24):
            outer.update(hashlib.sha256(part).digest())
    return outer.hexdigest()


def test_separate_runs_of_models_with_another_prefix(tiny, tmp_path):
    """The base is a bare body, the models have its name before theirs: the state keeps the names of the first run."""
    for name in ("x", "y"):
        stored = {f"body.{n}": t for n, t in tools.read_model(tiny / name).items()}
        tools.write_folder(tmp_path / name, stored)
    shutil.copytree(tiny / "base", tmp_path / "base")
    last = tools.read_model(one_at_a_time(tmp_path, ["x", "y"], tmp_path, ".h5"))
    plain = tools.read_model(one_at_a_time(tiny, ["x", "y"], tmp_path, "-plain.h5"))
    assert sorted(last) == sorted(f"body.{n}" for n in plain)
    assert tools.same_tensors({f"body.{n}": t for n, t in plain.items()}, last)


def test_state(tiny, tmp_path):
    """What a first model leaves: its task vector, its norm, the base and its hashes."""
    tools.merge(config(tiny / "base", [tiny / "x"], alpha=0.25), tmp_path / "x.h5", ranks=2)
    base, x = tools.read_model(tiny / "base"), tools.read_model(tiny / "x")
    tau = {n: (x[n][1] - base[n][1]).astype(np.float64) for n in ("m", "same", "v")}
    with h5py.File(tmp_path / "x.h5") as file:
        state = file["state/opcm"]
        assert sorted(state["A"]) == sorted(tau)
        for name, t in tau.items():
            assert state["A"][name].dtype == np.float64 and np.array_equal(state["A"][name][()], t)
        assert state.attrs["count"] == 1 and state.attrs["alpha"] == 0.25 and state.attrs["mode"] == "block"
        assert state.attrs["norm_mean"] == pytest.approx(np.sqrt(sum((t**2).sum() for t in tau.values())), rel=1e-14)
        assert state.attrs["base"] == str((tiny / "base").resolve())
        assert list(state.attrs["base_sha256"]) == [content_hash(p) for p in sorted((tiny / "base").glob("*.safetensors"))]


def test_order_of_a_later_run(tiny, tmp_path):
    """Two models in a later run, from another folder; the files of both runs are in its provenance."""
    tools.merge(config(tiny / "base", [tiny / n for n in "xyz"]), tmp_path / "all.h5")
    (tmp_path / "a").mkdir()
    tools.merge(config(tiny / "base", [tiny / "x"]), tmp_path / "a/one.h5")
    result = tools.merge(config("one.h5", [tiny / "y", tiny / "z"]), tmp_path / "a/three.h5")
    assert "1 model merged" in result.err
    assert tools.same_tensors(tools.read_model(tmp_path / "all.h5"), tools.read_model(tmp_path / "a/three.h5"))
    with h5py.File(tmp_path / "a/three.h5") as file:
        paths = [p.decode() for p in file["provenance/path"]]
        assert file["state/opcm"].attrs["count"] == 3
    assert any(p.endswith("a/one.h5") for p in paths) and any("base" in p for p in paths)


def test_other_parameters_are_refused(tiny, tmp_path):
    tools.merge(config(tiny / "base", [tiny / "x"], alpha=0.3, mode="paper"), tmp_path / "x.h5")
    for parameters, text in [({"mode": "paper"}, "'alpha' must be 0.3, as in"),
                             ({"alpha": 0.3}, "'mode' must be paper"),
                             ({"alpha": [{"filter": "m", "value": 0.3}, {"value": 0.4}], "mode": "paper"}, "alpha must be the same for all tensors")]:  # fmt: skip
        result = tools.merge(config(tmp_path / "x.h5", [tiny / "y"], **parameters), tmp_path / "y.h5", ranks=2, code=2)
        assert text in result.err, result
    assert not (tmp_path / "y.h5").exists()
    again = config(tmp_path / "x.h5", [tiny / "y"], alpha=0.3, mode="paper")
    assert "replace one of the inputs" in tools.merge(again, tmp_path / "x.h5", "--force", code=2).err


def test_base_and_state_are_checked(tiny, tmp_path):
    base = tools.copy_folder(tiny / "base", tmp_path / "base")
    tools.merge(config(base, [tiny / "x"]), tmp_path / "x.h5")
    later = config(tmp_path / "x.h5", [tiny / "y"])

    def fails(text, check="--check"):
        result = tools.merge(later, tmp_path / "y.h5", *([check] if check else []), code=3, ranks=2)
        assert text in result.err and "x.h5" in result.err, result
        assert not (tmp_path / "y.h5").exists()

    file = sorted(base.glob("*.safetensors"))[0]
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    fails("has changed since", check=None)
    shutil.rmtree(base)
    fails("which is missing")
    tools.copy_folder(tiny / "base", base)
    with h5py.File(tmp_path / "x.h5", "r+") as h5:
        norm = h5["state/opcm"].attrs["norm_mean"]
        del h5["state/opcm"].attrs["norm_mean"]
    fails("lacks the attribute norm_mean")
    with h5py.File(tmp_path / "x.h5", "r+") as h5:
        h5["state/opcm"].attrs["norm_mean"] = norm
        h5["state/opcm/A/m"][3, 4] = np.nan
    fails("the state of tensor m is not finite at index 124", check=None)
    with h5py.File(tmp_path / "x.h5", "r+") as h5:
        del h5["state/opcm/A/v"]
    fails("has no state of tensor v")


def test_other_methods_see_a_plain_model(tiny, tmp_path):
    tools.merge(config(tiny / "base", [tiny / "x"]), tmp_path / "x.h5")
    plain = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "x.h5")}]}
    tools.merge(plain, tmp_path / "copy.h5")
    assert tools.same_tensors(tools.read_model(tmp_path / "x.h5"), tools.read_model(tmp_path / "copy.h5"))
    with h5py.File(tmp_path / "copy.h5") as file:
        assert "state" not in file
