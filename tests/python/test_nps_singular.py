"""Merging by nps with partition singular equals naive NumPy: given weights, both families, task vectors of low rank and of 0,
searches, on any number of ranks."""

import json

import h5py
import numpy as np
import pytest
import tools

ABSENT = 1e-5  # directions with a smaller part of the largest singular value are left out


def is_split(name, array, exclude):
    return array.ndim == 2 and min(array.shape) >= 2 and not any(part in name for part in exclude)


def taken(spectra, shapes, priorities, density, scope):
    """{name: mask of kept triples} of one list, by a plain sort of all triples."""
    bands = len(priorities)
    all_ = []
    for name, s in spectra.items():
        n = min(shapes[name])
        for k in range(n):
            if s[0] > 0 and s[k] > ABSENT * s[0]:
                all_.append((-priorities[k * bands // n] * s[k], name.encode(), k, name))
    kept = {name: np.zeros(len(s), bool) for name, s in spectra.items()}
    for group in [list(spectra)] if scope == "model" else [[name] for name in spectra]:
        budget = np.floor(density * sum(np.prod(shapes[n]) for n in group)) if density < 1 else np.inf
        stored = 0
        for _, _, k, name in sorted(t for t in all_ if t[3] in group):
            stored += sum(shapes[name])
            if stored > budget:
                break
            kept[name][k] = True
    return kept


def rest_of(taus, density, scope):
    """{name: masked} of one list's other tensors; equal magnitudes: the earlier."""
    names = sorted(taus, key=str.encode)
    if not names:
        return {}

    def mask(x):
        keep = np.zeros(x.size, bool)
        keep[np.argsort(-np.abs(x), kind="stable")[: int(np.floor(density * x.size))]] = True
        return keep

    flat = [taus[n].ravel() for n in names]
    if scope == "model":
        parts = np.split(mask(np.concatenate(flat)), np.cumsum([x.size for x in flat])[:-1])
    else:
        parts = [mask(x) for x in flat]
    return {n: np.where(p, x, np.float32(0)).reshape(taus[n].shape) for n, x, p in zip(names, flat, parts)}


def one_list(taus, weights, rest, priorities, density, scope, exclude, flat=False):
    """({name: q}, stored numbers) of a list; flat: all values are the mean of the spectrum."""
    bands = len(weights)
    matrices = {n: t for n, t in taus.items() if is_split(n, t, exclude)}
    factors = {n: np.linalg.svd(t.astype(np.float64), full_matrices=False) for n, t in matrices.items()}
    kept = taken({n: f[1] for n, f in factors.items()}, {n: t.shape for n, t in matrices.items()}, priorities, density, scope)
    q, stored = {}, 0
    for name, (u, s, vt) in factors.items():
        n = len(s)
        w = np.array([weights[k * bands // n] for k in range(n)])
        value = np.where(kept[name], w * (s.mean() if flat else s), 0)
        q[name] = (u * value) @ vt
        q[name][~matrices[name].any(1)] = 0  # rows and columns of nothing but 0 stay exactly so
        q[name][:, ~matrices[name].any(0)] = 0
        stored += kept[name].sum() * sum(matrices[name].shape)
    others = rest_of({n: t.astype(np.float32) for n, t in taus.items() if n not in q}, density, scope)
    stored += sum(np.count_nonzero(x) for x in others.values())
    for name, x in others.items():
        q[name] = (np.float32(rest) * x).astype(np.float64)
    return q, stored


def put_together(base, qs, lambdas, normalize="none"):
    merged = {}
    for name, b in base.items():
        total = sum(lam * q[name] for q, lam in zip(qs, lambdas))
        if normalize == "sum":
            total = total / sum(lambdas)
        elif normalize == "coordinate":
            share = sum(lam * (q[name] != 0) for q, lam in zip(qs, lambdas))
            total = np.divide(total, share, out=np.zeros_like(total), where=share != 0)
        merged[name] = b.astype(np.float64) + total
    return merged


def assert_near(merged, base, wanted):
    """‖difference‖ ≤ 1e-5 of the update's norm, tensor by tensor, both rounded to float32."""
    assert merged.keys() == wanted.keys()
    for name, want in wanted.items():
        want = want.astype(np.float32).astype(np.float64)
        update = np.linalg.norm(want - base[name])
        off = np.linalg.norm(tools.values(merged[name]).astype(np.float64) - want)
        assert off <= 1e-5 * update, f"{name}: off by {off}, the update is {update}"


def read(folder, names):
    """(base, [task vectors of every model]) as values; the base's tensors only."""
    base = {n: tools.values(t) for n, t in tools.read_model(folder / "base").items()}
    taus = []
    for name in names:
        model = tools.read_model(folder / name)
        taus.append({n: (tools.values(model[n]).astype(np.float64) - b).astype(np.float32) for n, b in base.items()})
    return base, taus


def config_of(folder, names, nps, parameters=None, weights=None, **more):
    models = [{"model": str(folder / n), "parameters": {"weight": w}} for n, w in zip(names, weights or [1.0] * len(names))]
    return {"merge_method": "nps", "base_model": str(folder / "base"), "models": models, "dtype": "float32",
            "parameters": parameters or {}, "nps": {"partition": "singular", **nps}, **more}  # fmt: skip


def merge_on_ranks(config, tmp_path, *options, ranks=(1, 3), **more):
    """Merge; the same bytes on all numbers of ranks."""
    first = None
    for count in ranks:
        out = tmp_path / f"{count}.h5"
        tools.merge(config, out, *options, ranks=count, **more)
        with h5py.File(out) as file:
            found = {}
            file["subspaces"].visititems(
                lambda n, d: found.update({n: d[()].tobytes()}) if isinstance(d, h5py.Dataset) else None
            )
        merged = tools.read_model(out)
        first = first or (merged, found)
        assert tools.same_tensors(first[0], merged), f"{count} ranks have other tensors"
        assert found == first[1], f"{count} ranks have other subspaces"
    return first[0], out


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Task vectors of low rank, of 0, with rows and columns of 0, thin ones; matrices in small."""
    folder = tmp_path_factory.mktemp("odd")
    random = np.random.default_rng(7)
    shapes = {"low": (40, 60), "zero": (30, 20), "thin": (2, 50), "tall": (90, 24), "row": (1, 64), "bias": (70,),
              "square": (16, 16), "gaps": (24, 32), "embed": (50, 12)}  # fmt: skip
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    tensors = {"base": base}
    for i, model in enumerate(("x", "y", "z", "same")):
        tau = {n: 0.1 * random.standard_normal(s) for n, s in shapes.items()}
        tau["low"] = 0.1 * random.standard_normal((40, 3)) @ random.standard_normal((3, 60)) * (i > 0)
        tau["zero"] = np.zeros((30, 20))
        tau["bias"] = np.round(tau["bias"] * 20) / 16  # many equal magnitudes
        base["bias"] = np.round(base["bias"] * 16) / np.float32(16)
        tau["gaps"][i * 4 : i * 4 + 6] = 0
        tau["gaps"][:, 20 + i : 22 + i] = 0
        if model == "same":
            tau = {n: np.zeros(s) for n, s in shapes.items()}
        tensors[model] = {n: (base[n] + tau[n]).astype(np.float32) for n in shapes}
        tensors[model]["gaps"] = np.where(tau["gaps"] == 0, base["gaps"], tensors[model]["gaps"])
    for model, values in tensors.items():
        tools.write_folder(folder / model, {n: ("F32", v) for n, v in values.items()})
    return folder


def folder_and_names(family, odd):
    return (odd, ["x", "y", "z", "same"]) if family == "odd" else (tools.MODELS / family, tools.TASKS[family])


WEIGHTS = [1.5, 0.8, -0.5, 0, 2.0]


@pytest.mark.parametrize("normalize", ["none", "sum", "coordinate"])
@pytest.mark.parametrize("family", [*tools.TASKS, "odd"])
def test_each(family, normalize, odd, tmp_path):
    """Given weights, with the rest's; the stored numbers are within the budget and as counted."""
    folder, names = folder_and_names(family, odd)
    scope = {"none": "model", "sum": "tensor", "coordinate": "model"}[normalize]
    density = 0.5 if family == "odd" else 0.2
    exclude = ["embed"]
    weights = [round(0.4 + 0.2 * i, 2) for i in range(len(names))]
    config = config_of(folder, names, {"subspaces": 5, "scope": scope, "density": density, "spectral_exclude": exclude,
                                       "weights": [*WEIGHTS, 0.7]},
                       {"lambda": 0.7, "normalize": normalize}, weights)  # fmt: skip
    merged, out = merge_on_ranks(config, tmp_path, ranks=(1, 2, 3, 4) if family == "odd" else (1, 3))
    base, taus = read(folder, names)
    lists = [one_list(t, WEIGHTS, 0.7, np.abs(WEIGHTS), density, scope, exclude) for t in taus]
    lambdas = [0.7 * w for w in weights]
    assert_near(merged, base, put_together(base, [q for q, _ in lists], lambdas, normalize))
    with h5py.File(out) as file:
        stored = file["subspaces/stored"][:]
        assert file["subspaces"].attrs["partition"] in ("singular", b"singular")
        for name, values in file["subspaces/sigma"].items():
            for row, tau in zip(values[:], taus):
                s = np.linalg.svd(tau[name].astype(np.float64), compute_uv=False)
                assert np.allclose(row, s, rtol=0, atol=1e-7 * s[0])
    elements = sum(b.size for b in base.values())
    assert (stored.sum(1) <= density * elements).all()
    if family != "odd":  # no entry that is kept is 0
        assert [int(n) for n in stored.sum(1)] == [n for _, n in lists]


@pytest.mark.parametrize("family", [*tools.TASKS, "odd"])
def test_sum(family, odd, tmp_path):
    folder, names = folder_and_names(family, odd)
    weights, priorities = [round(1.2 - 0.1 * i, 2) for i in range(len(names))], [1, 3, 0.5, 2]
    given = [1.3, 0.9, -0.4, 0.2]
    config = config_of(folder, names, {"of": "sum", "subspaces": 4, "density": 0.4, "weights": [*given, 0.6],
                                       "priorities": priorities}, {"lambda": 0.5}, weights)  # fmt: skip
    merged, _ = merge_on_ranks(config, tmp_path, ranks=(1, 2, 4) if family == "odd" else (1, 3))
    base, taus = read(folder, names)
    total = {n: sum(0.5 * w * t[n].astype(np.float64) for w, t in zip(weights, taus)) for n in base}
    total = {n: t if is_split(n, t, []) else (t / len(names)).astype(np.float32) for n, t in total.items()}
    q, _ = one_list(total, given, 0.6, priorities, 0.4, "model", [], flat=True)
    assert_near(merged, base, put_together(base, [q], [1]))


@pytest.mark.parametrize("family", [*tools.TASKS, "odd"])
def test_sum_with_weight_one_is_iso_c(family, odd, tmp_path):
    folder, names = folder_and_names(family, odd)
    base, _ = read(folder, names)
    config = config_of(folder, names, {"of": "sum", "density": 1.0})
    tools.merge(config, tmp_path / "nps.h5")
    tools.merge({**{k: v for k, v in config.items() if k != "nps"}, "merge_method": "iso_c"}, tmp_path / "iso_c.h5")
    wanted = {n: tools.values(t).astype(np.float64) for n, t in tools.read_model(tmp_path / "iso_c.h5").items()}
    assert_near(tools.read_model(tmp_path / "nps.h5"), base, wanted)


def test_density_one_keeps_all(odd, tmp_path):
    """Weights 1, all kept: task arithmetic."""
    names = ["x", "y", "z", "same"]
    base, taus = read(odd, names)
    tools.merge(config_of(odd, names, {"density": 1.0}, {"lambda": 0.4}), tmp_path / "out.h5")
    wanted = {n: b + sum(0.4 * t[n].astype(np.float64) for t in taus) for n, b in base.items()}
    assert_near(tools.read_model(tmp_path / "out.h5"), base, wanted)


def test_weights_of_their_own_and_transfer(odd, tmp_path):
    """One output a model, each with its own weights, priorities and density."""
    names = ["x", "y", "z"]
    given = {"x": [1, 2], "y": [0.5, -1, 3], "z": [2, 1]}
    priorities = {"x": [1, 4], "y": [2, 1], "z": [0, 1]}
    config = config_of(odd, names, {"application": "transfer", "subspaces": 2, "weights": given, "priorities": priorities})
    for model, density in zip(config["models"], (0.3, 0.6, 0.15)):
        model["parameters"]["density"] = density
    base, taus = read(odd, names)
    for ranks in (1, 2):
        tools.merge(config, tmp_path / "{name}.h5", "--force", ranks=ranks)
        for name, tau, density in zip(names, taus, (0.3, 0.6, 0.15)):
            rest = given[name][2] if len(given[name]) > 2 else 1
            q, _ = one_list(tau, given[name][:2], rest, priorities[name], density, "model", [])
            assert_near(tools.read_model(tmp_path / f"{name}.h5"), base, put_together(base, [q], [1]))


def test_spilled_factors_are_the_same(odd, tmp_path):
    """A rank without room for the factors keeps them in a file that nobody sees: the same bytes."""
    folder, names = tools.MODELS / "digits-vit", tools.TASKS["digits-vit"]
    config = config_of(folder, names, {"density": 0.2, "weights": [1.2] * 8})
    first, _ = merge_on_ranks(config, tmp_path, ranks=(1,))
    spill = tmp_path / "spill"
    spill.mkdir()
    env = {"TMPDIR": str(spill), "SLURM_TMPDIR": ""}
    plan = tools.merge(config, tmp_path / "out.h5", "--plan", env=env)
    need = tools.merge({**config, "resources": {"memory_per_rank": "1MiB"}}, tmp_path / "out.h5", code=2).err
    least = int(need.split("at least ")[1].split(" MiB")[0])
    config["resources"] = {"memory_per_rank": f"{least + 8}MiB"}
    for ranks in (1, 2):
        result = tools.merge(config, tmp_path / f"spilled-{ranks}.h5", "-v", ranks=ranks, env=env)
        assert f"in a file in {spill}" in result.out, result
        assert tools.same_tensors(first, tools.read_model(tmp_path / f"spilled-{ranks}.h5"))
    assert not list(spill.iterdir())
    assert "singular factors" in plan.out and "in memory" in plan.out


TASKS = tools.TASKS["digits-vit"]
CALIBRATION = str(tools.MODELS / "digits-vit/calibration.h5")
SHORT = {"generations": 2, "population": 4}
SEARCHES = {
    "prune, fuse": ({"stages": ["prune", "fuse"]}, {}),
    "joint of both": ({"variables": ["weight", "density"]}, {"scope": "tensor"}),
    "joint, own weights": ({"per_model": True, "variables": ["density"]}, {"spectral_exclude": ["mlp"]}),
    "sum": ({"variables": ["weight", "density"], "start": {"weight": 1.5}}, {"of": "sum", "density": 0.5}),
}


def columns_of(group):
    return [c.decode() if isinstance(c, bytes) else str(c) for c in group.attrs["columns"]]


@pytest.mark.parametrize("case", SEARCHES)
def test_search(case, tmp_path):
    """The same history and tensors on any number of ranks; what is written is what was scored."""
    search, nps = SEARCHES[case]
    names, folder = TASKS[:2], tools.MODELS / "digits-vit"
    config = config_of(folder, names, {"density": 0.1, **nps}, seed=3)
    config["search"] = {**SHORT, **search}
    config["fitness"] = {"holdout": 0, "tasks": [{"name": n, "data": CALIBRATION} for n in names]}
    first = None
    for ranks in (1, 2, 3, 4) if case == "sum" else (1, 3):
        out = tmp_path / f"{ranks}.h5"
        tools.merge(config, out, ranks=ranks)
        with h5py.File(out) as file:
            last = file["search/fuse" if "fuse" in file["search"] else "search/joint"]
            found = [last[k][()].tobytes() for k in ("genome", "correct", "nll_sum")]
            columns, best = columns_of(last), int(last.attrs["best"])
            nll, total = last["nll_sum"][best], last["total"][best]
            rest = [c for c in columns if "rest" in c]
        merged = tools.read_model(out)
        first = first or (found, merged)
        assert found == first[0] and tools.same_tensors(merged, first[1]), f"{ranks} ranks differ"
    if case == "sum":
        assert columns == [f"weight[{m}]" for m in range(8)] + ["weight[rest]"] + [f"log_priority[{m}]" for m in range(8)]
    elif "weight" in search.get("variables", ["weight"]) and case != "prune, fuse":
        assert rest == ["weight[rest]"] and sum("lambda" in c for c in columns) == 2
    heads = [word for n in names for word in ("--group", n, "--head", f"{n}={folder / n}")]
    scored = tools.run(tools.EVAL, out, "--data", CALIBRATION, "--json", *heads)
    assert scored.code == 0, scored
    tasks = json.loads(scored.out)["tasks"]
    assert [tasks[n]["nll"] for n in names] == pytest.approx(list(nll / total), rel=1e-6)


def test_spilled_search_is_the_same(tmp_path):
    names, folder = TASKS[:2], tools.MODELS / "digits-vit"
    config = config_of(folder, names, {"of": "sum", "density": 0.5}, seed=3)
    config["search"] = SHORT
    config["fitness"] = {"holdout": 0, "tasks": [{"name": n, "data": CALIBRATION} for n in names]}
    tools.merge(config, tmp_path / "memory.h5")
    need = tools.merge({**config, "resources": {"memory_per_rank": "1MiB"}}, tmp_path / "out.h5", code=2).err
    assert "the search needs" in need
    config["resources"] = {"memory_per_rank": "40MiB"}
    for ranks, shared in ((1, 0), (2, 0), (3, 3)):
        config["search"] = {**SHORT, "ranks_per_model": shared}
        result = tools.merge(config, tmp_path / f"{ranks}.h5", "-v", ranks=ranks)
        assert "singular factors" in result.out
        assert tools.same_tensors(tools.read_model(tmp_path / "memory.h5"), tools.read_model(tmp_path / f"{ranks}.h5"))


def test_nothing_else_is_in_a_matrix_of_no_change(odd, tmp_path):
    merged, _ = merge_on_ranks(config_of(odd, ["x", "same"], {"density": 0.5}), tmp_path, ranks=(1, 2))
    base, _ = read(odd, [])
    for name in ("zero", "low"):
        assert np.array_equal(tools.values(merged[name]), base[name])


def test_nan_names_model_and_tensor(odd, tmp_path):
    broken = {n: (t, a.copy()) for n, (t, a) in tools.read_model(odd / "x").items()}
    broken["tall"][1][3, 1] = np.nan
    tools.write_folder(tmp_path / "broken", broken)
    config = config_of(odd, ["y"], {})
    config["models"].append({"model": str(tmp_path / "broken")})
    for ranks in (1, 3):
        result = tools.merge(config, tmp_path / "out.h5", code=3, ranks=ranks)
        assert "model broken" in result.err and "tensor tall holds NaN at index 73" in result.err


@pytest.mark.parametrize(
    "nps, more, message",
    [
        ({"partition": "magnitude", "of": "sum"}, {}, "nps.of: sum goes with nps.partition: singular only"),
        ({"partition": "magnitude", "spectral_exclude": ["a"]}, {}, "spectral_exclude: goes with"),
        ({"of": "sum", "application": "transfer"}, {}, "nps.of: sum makes one model of all"),
        ({"of": "sum", "weights": {"x": [1] * 8}}, {}, "the sum (nps.of: sum) has no models"),
        ({"weights": [1] * 7}, {}, "expected 8 numbers, one a subspace, or one more"),
        ({"spectral_exclude": "embed"}, {}, "expected a list of parts of tensors' names"),
        ({"of": "sum"}, {"parameters": {"normalize": "sum"}}, "expected normalize none"),
        ({"of": "sum"}, {"parameters": {"density": [{"filter": "tall", "value": 0.1}, {"value": 0.2}]}}, "density must be the same for all tensors"),
    ],
)
def test_contradictions_are_errors(nps, more, message, odd, tmp_path):
    config = {**config_of(odd, ["x", "y"], nps), **more}
    result = tools.merge(config, tmp_path / "{name}.h5", code=2)
    assert message in result.err, result
    if "parameters" not in more:
        assert ".yaml:" in result.err, "the line is told"


@pytest.mark.parametrize("search", [{"stages": ["prune"]}, {"stages": ["fuse"]}, {"per_model": True}])
def test_stages_of_the_sum(search, tmp_path):
    config = config_of(tools.MODELS / "digits-vit", TASKS[:2], {"of": "sum"})
    config["search"] = search
    config["fitness"] = {"tasks": [{"name": n, "data": CALIBRATION} for n in TASKS[:2]]}
    result = tools.merge(config, tmp_path / "out.h5", code=2)
    assert "nps.of: sum" in result.err and ".yaml:" in result.err
