"""Archives of singular triples: what they hold against naive NumPy, and that they expand to what was scored."""

import json
import shutil
import sys

import h5py
import numpy as np
import pytest
import tools
from test_nps_singular import one_list, read
from tools import CONVERT, EVAL, MODELS, ROOT, merge, read_model, run, same_tensors

sys.path.insert(0, str(ROOT / "tools"))
import nps_merge  # noqa: E402

WEIGHTS = [1.5, 0.5, -1.0, 2.0, 0.75]  # the last is that of the tensors that are no matrices


def singular(family, names, density=0.1, bits=8, scope="model", exclude=(), **more):
    nps = {"application": "compression", "partition": "singular", "density": density, "subspaces": 4, "scope": scope,
           "weights": WEIGHTS, "spectral_exclude": list(exclude)}  # fmt: skip
    config = tools.recipe(family, "nps", names=names, nps=nps, archive={"value_bits": bits}, **more)
    del config["dtype"]
    return config


def updates(path, name):
    with h5py.File(path) as file:
        model = nps_merge.Expanded(file, name, nps_merge.open_base(file, True))
        return {n: model.update(n).reshape(model.base.raw(n)[1].shape) for n in model.index}


def norm(tensors):
    return np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in tensors.values()))


CASES = [("digits-vit", "parity", 0.1, 16, "model", ()), ("digits-vit", "plain", 0.3, 8, "tensor", ("embeddings",)),
         ("bytes-llama", "german", 0.05, 4, "model", ())]  # fmt: skip


@pytest.mark.parametrize("family, name, density, bits, scope, exclude", CASES)
def test_updates_are_the_rounded_ones_of_the_oracle(family, name, density, bits, scope, exclude, tmp_path):
    out = tmp_path / "a.h5"
    merge(singular(family, [name], density, bits, scope, exclude, parameters={"lambda": 0.5}), out, ranks=3)
    _, (tau,) = read(MODELS / family, [name])
    q, stored = one_list(tau, WEIGHTS[:4], WEIGHTS[4], np.abs(WEIGHTS[:4]), density, scope, exclude)
    wanted = {n: 0.5 * x for n, x in q.items()}
    found = updates(out, name)
    assert found.keys() == wanted.keys()
    error = norm({n: found[n] - wanted[n] for n in wanted}) / norm(wanted)
    with h5py.File(out) as file:
        group = file[f"models/{name}"]
        told = float(group.attrs["error"])
        assert abs(error - told) <= 1e-5 + 1e-3 * told and told < {4: 0.3, 8: 0.02, 16: 1e-4}[bits]
        assert group.attrs["kept"] <= stored  # entries whose number is 0 are not stored
        assert group["matrices"][:, 0].sum() * 2 == len(group["triple_scales"])


def test_the_bytes_are_the_same_on_any_number_of_ranks_and_expand_alike(tmp_path):
    config = singular("bytes-llama", ["c", "legal"])
    for ranks in (0, 2, 5):
        merge(config, tmp_path / f"{ranks}.h5", ranks=ranks)
    assert len({(tmp_path / f"{ranks}.h5").read_bytes() for ranks in (0, 2, 5)}) == 1
    path = f"{tmp_path}/0.h5#legal"
    with nps_merge.open(path, framework="numpy") as model:
        wanted = {name: model.raw(name) for name in model}
    for out, ranks in (("folder", 0), ("one.h5", 3)):
        result = run(CONVERT, path, tmp_path / out, ranks=ranks)
        assert result.code == 0, result
        assert same_tensors(read_model(tmp_path / out), wanted)


def test_what_the_search_scores_is_what_expands(tmp_path):
    config = singular("digits-vit", ["plain", "blur"], bits=4, search={"generations": 1, "population": 3})
    del config["nps"]["weights"]
    data = str(MODELS / "digits-vit/calibration.h5")
    config["fitness"] = {"tasks": [{"name": name, "data": data} for name in ("plain", "blur")]}
    out = tmp_path / "a.h5"
    merge(config, out, "--log", tmp_path / "log", ranks=2)
    rows = next(e for e in map(json.loads, (tmp_path / "log").open()) if e["event"] == "scores")["tasks"]
    for row in rows:
        result = run(EVAL, f"{out}#{row['task']}", "--data", data, "--group", row["task"], "--json", ranks=2)
        found = json.loads(result.out)["tasks"][row["task"]]
        for key, within in (("accuracy", 1e-12), ("nll", 1e-5)):
            told = 0.75 * row["calibration"]["merged"][key] + 0.25 * row["held_out"]["merged"][key]
            assert abs(found[key] - told) < within
    config["search"]["start_from"] = str(out)
    merge(config, tmp_path / "b.h5")
    with h5py.File(out) as a, h5py.File(tmp_path / "b.h5") as b:
        for name in ("plain", "blur"):
            ends = [file[f"search/prune/{name}"] for file in (a, b)]
            assert len(ends[0]["genome"]) == (2 if ends[0].attrs["best"] else 1)
            assert np.array_equal(ends[0]["genome"][ends[0].attrs["best"]], ends[1]["genome"][ends[1].attrs["start"]])


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    out = tmp_path_factory.mktemp("singular") / "a.h5"
    merge(singular("digits-vit", ["plain"]), out)
    return out


def put(name, data):
    def change(model):
        del model[name]
        model.create_dataset(name, data=data)

    return change


def set_at(name, at, value):
    return lambda model: model[name].__setitem__(at, value)


def unpacked(model):
    """One matrix of two claims a triple more, the other one less: their codes do not unpack to so many."""
    first, second = np.flatnonzero(model["matrices"][:, 0] > 1)[:2]
    model["matrices"][first, 0] += 1
    model["matrices"][second, 0] -= 1


DAMAGE = {
    "no table": (lambda model: model.__delitem__("matrices"), "there is no dataset matrices"),
    "no triples": (lambda model: model.__delitem__("triples"), "there is no dataset triples"),
    "a table of another type": (put("matrices", np.zeros((26, 3), np.int32)), "dataset matrices is I32"),
    "a negative rank": (set_at("matrices", (1, 0), -1), "has -1 of"),
    "too many triples": (set_at("matrices", (1, 0), 10**6), "has 1000000 of"),
    "negative bytes": (set_at("matrices", (1, 1), -7), "in -7 bytes"),
    "huge bytes": (set_at("matrices", (1, 1), 2**62), "bytes"),
    "scales cut off": (put("triple_scales", np.ones(2, np.float32)), "dataset triple_scales has 2 entries"),
    "codes cut off": (put("triples", np.ones(9, np.uint8)), "dataset triples has 9 entries"),
    "a changed code": (lambda model: model["triples"].__setitem__(5, 255 - model["triples"][5]), "checksum"),
    "a changed scale": (set_at("triple_scales", 3, 7), "checksum"),
    "ranks of others": (unpacked, "checksum"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_archives_are_refused(case, archive, tmp_path):
    change, message = DAMAGE[case]
    shutil.copy(archive, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        change(file["models/plain"])
    result = run(CONVERT, f"{tmp_path}/a.h5#plain", tmp_path / "out")
    assert result.code == 3 and message in result.err and "a.h5" in result.err, result
    assert not (tmp_path / "out").exists()
