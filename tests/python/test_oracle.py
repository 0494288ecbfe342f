"""Merges of both example families equal naive NumPy in float64, and what an independent program recorded."""

import hashlib
import json
import pathlib
import re

import h5py
import numpy as np
import oracle
import pytest
import tools

FAMILIES = list(tools.TASKS)
EXPECTED = pathlib.Path(__file__).parent / "expected"

# Where a float64 sum is made in another order, its last rounding may fall the other way.
ODD_ONES = 1e-4


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(name, base, models): {tensor: float32 values}, the base's tensors only."""
    name = request.param
    read = lambda model: {n: tools.values(t) for n, t in tools.read_model(tools.MODELS / name / model).items()}
    base = read("base")
    models = [read(task) for task in tools.TASKS[name]]
    return name, base, [{n: m[n] for n in base} for m in models]


def ordered(x):
    """float32 bits as integers in the order of the numbers: neighbours differ by 1."""
    bits = np.ascontiguousarray(x, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def assert_equal(merged, expected, odd_ones=0.0):
    """merged: stored tensors; expected: {name: float64}. Float32 may be off by 1 ulp in a fraction of the elements."""
    assert merged.keys() == expected.keys()
    off, total = 0, 0
    for name, (dtype, array) in merged.items():
        assert array.shape == expected[name].shape, name
        steps = ordered(array) - ordered(expected[name].astype(np.float32)) if dtype == "F32" else (
            tools.values((dtype, array)) != tools.values((dtype, tools.narrow(expected[name], dtype))))  # fmt: skip
        assert dtype != "F32" or np.abs(steps).max(initial=0) <= 1, f"{name}: {np.abs(steps).max()} ulp"
        off += np.count_nonzero(steps)
        total += array.size
    assert off <= odd_ones * total, f"{off} of {total} elements differ"


def each(family, function):
    """Apply a merge of one tensor to all: function(name, base's array, models' arrays)."""
    _, base, models = family
    return {name: function(name, base[name], [m[name] for m in models]) for name in base}


def merged(config, tmp_path, ranks=0):
    tools.merge(config, tmp_path / "out.h5", ranks=ranks)
    return tools.read_model(tmp_path / "out.h5")


def weights_of(family):
    """Uneven weights, one a model."""
    return [round(0.2 + 0.15 * i, 2) for i in range(len(tools.TASKS[family[0]]))]


def config_of(family, method, parameters=None, each_model=None, **more):
    return tools.recipe(family[0], method, parameters, each_model, **more)


@pytest.mark.parametrize("normalize", [True, False])
def test_linear(family, normalize, tmp_path):
    weights = weights_of(family)
    config = config_of(family, "linear", {"normalize": normalize}, [{"weight": w} for w in weights])
    assert_equal(merged(config, tmp_path), each(family, lambda n, b, x: oracle.linear(x, weights, normalize)))


@pytest.mark.parametrize("lam", [0.3, 1])
@pytest.mark.parametrize("normalize", [False, True])
def test_task_arithmetic(family, lam, normalize, tmp_path):
    weights = weights_of(family)
    config = config_of(
        family, "task_arithmetic", {"lambda": lam, "normalize": normalize}, [{"weight": w} for w in weights]
    )
    expected = each(family, lambda n, b, x: oracle.task_arithmetic(b, x, weights, lam, normalize))
    assert_equal(merged(config, tmp_path, ranks=2), expected)


TIES = [(0.2, 1, True), (0.5, 0.7, True), (0.037, 1.5, False), (1, 1, True), (0, 1, True)]


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("density, lam, normalize", TIES)
def test_ties(family, scope, density, lam, normalize, tmp_path):
    _, base, models = family
    weights = weights_of(family)
    config = config_of(family, "ties", {"scope": scope, "density": density, "lambda": lam, "normalize": normalize},
                       [{"weight": w} for w in weights])  # fmt: skip
    masks = oracle.ties_masks(base, models, [density] * len(models), scope)
    expected = each(family, lambda n, b, x: oracle.ties(b, x, masks[n], weights, lam, normalize))
    assert_equal(merged(config, tmp_path, ranks=2), expected)


def test_ties_with_densities_and_signs_of_their_own(family, tmp_path):
    """Every model has its own density; a negative weight turns a model's votes round."""
    _, base, models = family
    weights = [-w if i == 1 else w for i, w in enumerate(weights_of(family))]
    densities = [0.1 + 0.1 * i for i in range(len(models))]
    config = config_of(family, "ties", None, [{"weight": w, "density": d} for w, d in zip(weights, densities)])
    masks = oracle.ties_masks(base, models, densities, "tensor")
    assert_equal(merged(config, tmp_path), each(family, lambda n, b, x: oracle.ties(b, x, masks[n], weights)))


@pytest.mark.parametrize("rescale", [True, False, "expectation"])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare(family, method, rescale, tmp_path):
    weights, seed = weights_of(family), 123456789012345
    densities = [[0.5, 0.1, 1][i % 3] for i in range(len(weights))]
    config = config_of(family, method, {"rescale": rescale, "lambda": 0.8},
                       [{"weight": w, "density": d} for w, d in zip(weights, densities)], seed=seed)  # fmt: skip
    elect = method == "dare_ties"
    expected = each(family, lambda n, b, x: oracle.dare(n, b, x, weights, densities, seed, rescale, elect, lam=0.8))
    assert_equal(merged(config, tmp_path, ranks=2), expected, ODD_ONES if rescale is True else 0)


def test_dare_by_default_rescales_and_does_not_normalize(family, tmp_path):
    weights = weights_of(family)
    config = config_of(family, "dare_ties", {"density": 0.3, "normalize": True}, [{"weight": w} for w in weights])
    expected = each(family, lambda n, b, x: oracle.dare(n, b, x, weights, [0.3] * len(weights), 0, True, True, 1, True))
    assert_equal(merged(config, tmp_path), expected, ODD_ONES)


def check_kept(family, result, kept):
    """The table tells what part of each task vector is kept. kept: entries, one number a model."""
    whole = sum(x.size for x in family[1].values())
    for task, count in zip(tools.TASKS[family[0]], kept):
        assert re.search(rf"{task}\s+\S+\s+{100 * count / whole:.2f} %", result.out), (task, count, result.out)


@pytest.mark.parametrize("gamma", [None, 0.2, 0])
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(family, method, gamma, tmp_path):
    """Densities that leave room for the outliers' part and some that do not, all, nothing; counts of what is kept."""
    base = family[1]
    weights = weights_of(family)
    densities = [[0.5, 0.9, 1, 0, 0.004][i % 5] for i in range(len(weights))]
    config = config_of(family, method, {"lambda": 0.8, **({} if gamma is None else {"gamma": gamma})},
                       [{"weight": w, "density": d} for w, d in zip(weights, densities)])  # fmt: skip
    gammas = [0.01 if gamma is None else gamma] * len(weights)
    expected = each(family, lambda n, b, x: oracle.breadcrumbs(b, x, weights, densities, gammas, method.endswith("ties"), 0.8))
    result = tools.merge(config, tmp_path / "out.h5", ranks=2)
    assert_equal(tools.read_model(tmp_path / "out.h5"), expected)
    check_kept(family, result, [sum(x.size if d == 1 else int(d * x.size) for x in base.values()) for d in densities])


def test_breadcrumbs_with_outliers_of_their_own(family, tmp_path):
    """Every model has its own gamma; a negative weight; divided."""
    weights = [-w if i == 1 else w for i, w in enumerate(weights_of(family))]
    gammas = [0.05 * i for i in range(len(weights))]
    densities = [0.3 + 0.1 * i for i in range(len(weights))]
    config = config_of(family, "breadcrumbs_ties", {"normalize": True},
                       [{"weight": w, "density": d, "gamma": g} for w, d, g in zip(weights, densities, gammas)])  # fmt: skip
    expected = each(family, lambda n, b, x: oracle.breadcrumbs(b, x, weights, densities, gammas, True, 1, True))
    assert_equal(merged(config, tmp_path, ranks=3), expected)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("method", ["della_linear", "della"])
def test_della(family, method, rescale, tmp_path):
    weights, seed = weights_of(family), 123456789012345
    densities = [[0.5, 0.2, 1, 0][i % 4] for i in range(len(weights))]
    epsilons = [[0.15, 0.19, 0.3, 0][i % 4] for i in range(len(weights))]
    config = config_of(family, method, {"rescale": rescale, "lambda": 0.8, "normalize": False}, [
        {"weight": w, "density": d, "epsilon": e} for w, d, e in zip(weights, densities, epsilons)], seed=seed)  # fmt: skip
    expected = each(family, lambda n, b, x: oracle.della(
        n, b, x, weights, densities, epsilons, seed, rescale, method == "della", 0.8, False))  # fmt: skip
    assert_equal(merged(config, tmp_path, ranks=2), expected, ODD_ONES if rescale else 0)


@pytest.mark.parametrize("method", ["della_linear", "della"])
def test_della_by_default(family, method, tmp_path):
    """epsilon 0.15, rescaled; della is normalised."""
    weights, elect = weights_of(family), method == "della"
    config = config_of(family, method, {"density": 0.5}, [{"weight": w} for w in weights])
    expected = each(family, lambda n, b, x: oracle.della(
        n, b, x, weights, [0.5] * len(weights), [0.15] * len(weights), 0, True, elect, 1, elect))  # fmt: skip
    assert_equal(merged(config, tmp_path), expected, ODD_ONES)


@pytest.mark.parametrize("topk", [1, 0.3, 0.02, 0])
def test_sce(family, topk, tmp_path):
    _, base, models = family
    result = tools.merge(config_of(family, "sce", {"select_topk": topk}), tmp_path / "out.h5", ranks=2)
    expected = each(family, lambda n, b, x: oracle.sce(b, x, topk))
    assert_equal(tools.read_model(tmp_path / "out.h5"), expected, ODD_ONES)
    tau = {n: np.stack([oracle.task_vector(m[n], base[n]) for m in models]) for n in base}
    check_kept(family, result, [sum(int(oracle.sce_mask(t, topk).sum()) for t in tau.values())] * len(models))


def test_sce_selects_more_in_some_tensors(family, tmp_path):
    """All, a part and nothing in one merge."""
    name, base, _ = family
    first, second = sorted(base)[0], sorted(base)[1]
    topk = [{"filter": first, "value": 1}, {"filter": second, "value": 0}, {"value": 0.4}]
    part = lambda n: 1 if first in n else 0 if second in n else 0.4
    expected = each(family, lambda n, b, x: oracle.sce(b, x, part(n)))
    assert_equal(merged(config_of(family, "sce", {"select_topk": topk}), tmp_path, ranks=3), expected, ODD_ONES)


def test_sce_of_one_model(family, tmp_path):
    """A single model does not vary: nothing is selected; without selection it is the result."""
    name, base, models = family
    for topk in (0.5, 1):
        config = tools.recipe(name, "sce", {"select_topk": topk}, names=[tools.TASKS[name][0]])
        result = merged(config, tmp_path)
        expected = {n: oracle.sce(base[n], [models[0][n]], topk) for n in base}
        assert_equal({n: result[n] for n in base}, expected, ODD_ONES)
        assert topk == 1 or all(np.array_equal(expected[n], base[n].astype(np.float64)) for n in base)
        (tmp_path / "out.h5").unlink()


RAM = [("ram", {}), ("ram", {"epsilon": 0.002}), ("ramplus_tl", {}), ("ramplus_tl", {"epsilon": 0.003, "r": 0.5, "alpha": 0.9}),
       ("ramplus_tl", {"epsilon": 0.002, "r": -1, "alpha": 0.1})]  # fmt: skip


@pytest.mark.parametrize("method, parameters", RAM)
def test_ram(family, method, parameters, tmp_path):
    _, base, models = family
    values = {"r": 0.1 if method == "ramplus_tl" else 0, **parameters}
    result = tools.merge(config_of(family, method, parameters), tmp_path / "out.h5", ranks=2)
    assert_equal(tools.read_model(tmp_path / "out.h5"), each(family, lambda n, b, x: oracle.ram(b, x, **values)))
    epsilon = np.float32(parameters.get("epsilon", 1e-5))
    check_kept(family, result, [sum(int((np.abs(oracle.task_vector(m[n], base[n])) > epsilon).sum()) for n in base)
                                for m in models])  # fmt: skip


SUBSPACE_WEIGHTS = [0.3, -0.5, 0, 0.7, 1, 1.1, 0.9, 1.3]


def count_kept(path):
    """([kept entries of each model], [all its entries])."""
    with h5py.File(path) as f:
        return f["subspaces/kept"][:].sum(1).tolist(), f["subspaces/entries"][:].sum(1).tolist()


def check_nps(family, tmp_path, config, weights, densities, lambdas, priorities=None, extra=None):
    """Merge by nps and compare tensors and kept counts; extra: names of tensors besides the base's."""
    _, base, models = family
    scope = config["nps"]["scope"]
    normalize = config["parameters"].get("normalize", "none")
    q, kept = oracle.nps_models(base, models, weights, densities, scope, priorities)
    expected = each(family, lambda n, b, x: oracle.nps(b, q[n], lambdas, normalize))
    result = merged(config, tmp_path, ranks=2)
    assert_equal({n: x for n, x in result.items() if n in base}, expected, ODD_ONES)
    assert set(result) - set(base) == set(extra or ())
    d = [sum(x.size for x in base.values())] * len(models)
    if scope == "model":
        assert kept == [int(np.floor(r * n)) for r, n in zip(densities, d)]
    assert count_kept(tmp_path / "out.h5") == (kept, d)


@pytest.mark.parametrize("normalize", ["none", "sum", "coordinate"])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_nps(family, scope, normalize, tmp_path):
    weights = weights_of(family)
    config = config_of(family, "nps", {"lambda": 0.7, "normalize": normalize}, [{"weight": w} for w in weights],
                       nps={"scope": scope, "density": 0.1, "weights": SUBSPACE_WEIGHTS})  # fmt: skip
    count = len(weights)
    check_nps(family, tmp_path, config, [SUBSPACE_WEIGHTS] * count, [0.1] * count, [0.7 * w for w in weights])


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_nps_with_weights_and_densities_of_their_own(family, scope, tmp_path):
    """Every model has its own subspaces' weights, and all their priorities; some densities keep zeros, all or nothing."""
    tasks = tools.TASKS[family[0]]
    weights = [[0.2 * (i + 1) - 0.3 * m for m in range(5)] for i in range(len(tasks))]
    densities = [[0.05, 0.97, 1, 0, 0.3][i % 5] for i in range(len(tasks))]
    priorities = [2, 1, 0.5, 0.25, 0]
    config = config_of(family, "nps", {"lambda": 0.4}, [{"density": r} for r in densities],
                       nps={"scope": scope, "subspaces": 5, "weights": dict(zip(tasks, weights)),
                            "priorities": priorities})  # fmt: skip
    check_nps(family, tmp_path, config, weights, densities, [0.4] * len(tasks), [priorities] * len(tasks))


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_nps_transfers_a_model(family, scope, tmp_path):
    name, base, models = family
    task = tools.TASKS[name][1]
    config = tools.recipe(name, "nps", {"lambda": 0.7}, names=[task], nps={
        "application": "transfer", "scope": scope, "density": 0.04, "weights": SUBSPACE_WEIGHTS})  # fmt: skip
    head = set(tools.read_model(tools.MODELS / name / task)) - set(base)
    check_nps((name, base, [models[1]]), tmp_path, config, [SUBSPACE_WEIGHTS], [0.04], [0.7], extra=head)


@pytest.mark.parametrize("t", [0, 0.25, 1])
def test_slerp(family, t, tmp_path):
    name, base, models = family
    config = tools.recipe(name, "slerp", {"t": t}, names=[tools.TASKS[name][0]])
    expected = {n: oracle.slerp(base[n], models[0][n], t) for n in base}
    extra = {n: x for n, x in tools.read_model(tools.MODELS / name / tools.TASKS[name][0]).items() if n not in base}
    result = merged(config, tmp_path)
    for n, stored in extra.items():
        assert result.pop(n)[1].tobytes() == stored[1].tobytes()
    assert_equal(result, expected, ODD_ONES)


def test_arcee_fusion(family, tmp_path):
    """Most entries come from the base, some from the model."""
    name, base, models = family
    config = tools.recipe(name, "arcee_fusion", names=[tools.TASKS[name][0]])
    expected = {n: oracle.arcee_fusion(base[n], models[0][n]).reshape(base[n].shape) for n in base}
    result = merged(config, tmp_path, ranks=2)
    assert_equal({n: result[n] for n in base}, expected)
    taken = sum(np.count_nonzero(expected[n] != base[n]) for n in base) / sum(x.size for x in base.values())
    assert 0.01 < taken < 0.3


def test_slerp_of_different_directions(tmp_path):
    """The example models are nearly parallel to their base; these are not."""
    random = np.random.default_rng(3)
    a, b = (
        {f"x.{i}": ("F32", random.standard_normal((40, 30)).astype(np.float32)) for i in range(3)} for _ in range(2)
    )
    for name, tensors in (("a", a), ("b", b)):
        tools.write_folder(tmp_path / name, tensors)
    config = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "b"}], "parameters": {"t": 0.3}}
    expected = {n: oracle.slerp(a[n][1], b[n][1], 0.3) for n in a}
    assert_equal(merged(config, tmp_path), expected, 1e-2)


def of_directions(tmp_path, count):
    """Models at wide angles, some of whose tensors are 0, equal, or opposite: [{name: values}], and their folders."""
    random = np.random.default_rng(5)
    shapes = {"x": (300, 260), "y": (40, 30), "equal": (70,), "zero": (6, 5), "opposite": (50,), "cube": (3, 4, 5), "one": ()}
    models = [{n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(count)]
    for i, model in enumerate(models):
        model["zero"][:] = 0
        model["equal"] = models[0]["equal"]
        model["opposite"] = models[0]["opposite"] * (-1) ** i
        tools.write_folder(tmp_path / f"m{i}", {n: ("F32", x) for n, x in model.items()})
    return models, [str(tmp_path / f"m{i}") for i in range(count)]


GEOMETRIC = {  # method: parameters, weights (None: it has none), function([base] or [], models, weights)
    "nuslerp": ({}, [0.7, 0.5], lambda b, x, w: oracle.nuslerp(*x, w)),
    "nuslerp, weightless": ({}, [0.7, -0.7], lambda b, x, w: oracle.nuslerp(*x, w)),
    "multislerp": ({}, [0.7, 0.5, 0.3], lambda b, x, w: oracle.multislerp(x, w)),
    "multislerp, not normalized": ({"normalize_weights": False}, [0.7, -0.5, 0.2], lambda b, x, w: oracle.multislerp(x, w, False)),
    "karcher": ({}, [None] * 3, lambda b, x, w: oracle.karcher(b + x)),
    "karcher, further": ({"max_iter": 30, "tol": 1e-9}, [None] * 5, lambda b, x, w: oracle.karcher(b + x, 30, 1e-9)),
    "karcher, tol 0": ({"tol": 0}, [None] * 2, lambda b, x, w: oracle.karcher(b + x, tol=0)),
    "multislerp, eps 0": ({"eps": 0}, [0.7, 0.5, 0.3], lambda b, x, w: oracle.multislerp(x, w, eps=0)),
    "model_stock": ({}, [None] * 3, lambda b, x, w: oracle.model_stock(*b, x)),
    "nuslerp, rows": ({"nuslerp_flatten": False}, [0.7, 0.5],
                      lambda b, x, w: oracle.by_rows(lambda *r: oracle.nuslerp(*r, w), *x)),
    "model_stock, rows": ({"filter_wise": True}, [None] * 3,
                          lambda b, x, w: oracle.by_rows(lambda b, *r: oracle.model_stock(b, r), *b, *x)),
}


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("case", GEOMETRIC)
def test_angles(case, based, tmp_path):
    """Methods whose factors follow from norms and angles, on models and on task vectors."""
    parameters, weights, function = GEOMETRIC[case]
    method = case.split(",")[0]
    (base, *models), (base_folder, *folders) = of_directions(tmp_path, 1 + len(weights))
    config = {"merge_method": method, "parameters": parameters, "dtype": "float32", "models": [
        {"model": m, **({"parameters": {"weight": w}} if w is not None else {})} for m, w in zip(folders, weights)]}  # fmt: skip
    if not based and method == "model_stock":
        assert "model_stock needs base_model" in tools.merge(config, tmp_path / "no.h5", code=2).err
        return
    config.update({"base_model": base_folder} if based else {})
    expected = {}
    for n in base:
        x = [m[n] for m in models]
        if based and method in ("nuslerp", "multislerp"):
            expected[n] = base[n].astype(np.float64) + function([], [oracle.task_vector(v, base[n]) for v in x], weights)
        else:
            expected[n] = function([base[n]] if based else [], x, weights)
    # Of opposite vectors whether the cosine is −1 hangs on rounding.
    assert_equal(merged(config, tmp_path, ranks=2), expected, 5e-4 if method == "nuslerp" else ODD_ONES)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher", "model_stock"])
def test_angles_of_real_models(family, method, tmp_path):
    name, base, models = family
    weights = [0.6, 0.3] if method == "nuslerp" else weights_of(family)
    each_model = None if method in ("karcher", "model_stock") else [{"weight": w} for w in weights]
    config = config_of(family, method, each_model=each_model, names=tools.TASKS[name][: len(weights)])
    expected = {}
    for n, b in base.items():
        x = [m[n] for m in models[: len(weights)]]
        tau = [oracle.task_vector(v, b) for v in x]
        expected[n] = {"nuslerp": lambda: b.astype(np.float64) + oracle.nuslerp(*tau, weights),
                       "multislerp": lambda: b.astype(np.float64) + oracle.multislerp(tau, weights),
                       "karcher": lambda: oracle.karcher([b, *x]), "model_stock": lambda: oracle.model_stock(b, x)}[method]()  # fmt: skip
    assert_equal(merged(config, tmp_path), expected, ODD_ONES)


@pytest.mark.parametrize("t", [0, 1e-4, 0.01])
def test_nearswap(family, t, tmp_path):
    name, base, models = family
    config = tools.recipe(name, "nearswap", {"t": t}, names=[tools.TASKS[name][0]])
    result = merged(config, tmp_path)
    assert_equal({n: result[n] for n in base}, {n: oracle.nearswap(base[n], models[0][n], t) for n in base})


@pytest.mark.parametrize("lam, mask_lambdas, agree", [(1, None, 2), (0.3, [0.2, 0.6, 1, 0, 0.3], 3)])
def test_consensus(family, lam, mask_lambdas, agree, tmp_path):
    models = len(tools.TASKS[family[0]])
    masks = (mask_lambdas * 2)[:models] if mask_lambdas else None
    config = config_of(family, "consensus", {"lambda": lam, "min_agree": agree} if masks else None,
                       [{"mask_lambda": m} for m in masks] if masks else None)  # fmt: skip
    assert_equal(merged(config, tmp_path, ranks=2),
                 each(family, lambda n, b, x: oracle.consensus_of_tasks(b, x, lam, masks, agree)))  # fmt: skip


def test_passthrough_scales(family, tmp_path):
    name, base, models = family
    config = tools.recipe(name, "passthrough", None, {"scale": 0.7}, names=[tools.TASKS[name][1]])
    result = merged(config, tmp_path)
    extra = set(result) - set(base)
    for n in extra:
        result.pop(n)
    assert_equal(result, {n: models[1][n].astype(np.float64) * 0.7 for n in base})


# ---- output types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, stored", [("bfloat16", "BF16"), ("float16", "F16"), ("float64", "F64")])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_narrow_output_is_the_rounded_float64_result(family, method, dtype, stored, tmp_path):
    _, base, models = family
    weights = weights_of(family)
    config = config_of(family, method, None, [{"weight": w} for w in weights], out_dtype=dtype)
    if method == "linear":
        expected = each(family, lambda n, b, x: oracle.linear(x, weights))
    elif method == "task_arithmetic":
        expected = each(family, lambda n, b, x: oracle.task_arithmetic(b, x, weights))
    else:
        masks = oracle.ties_masks(base, models, [0.4] * len(models), "tensor")
        config["parameters"] = {"density": 0.4}
        expected = each(family, lambda n, b, x: oracle.ties(b, x, masks[n], weights))
    result = merged(config, tmp_path)
    assert {dtype for dtype, _ in result.values()} == {stored}
    assert_equal(result, expected)


def test_rounding_to_bfloat16_in_the_oracle():
    """1 + 2^-8 lies half way and goes to even; anything beyond it, however little, goes up: no double rounding."""
    half = 1 + 2.0**-8
    inputs = [1.0, half, half + 2.0**-40, half - 2.0**-40, 1 + 3 * 2.0**-8, -half - 2.0**-40, 0.0, 1e-45, 3.4e38]
    expected = [1.0, 1.0, 1 + 2.0**-7, 1.0, 1 + 2.0**-6, -1 - 2.0**-7, 0.0, 0.0, np.float32(3.3895314e38)]
    assert tools.from_bf16(tools.bf16_bits(inputs)).tolist()[:8] == expected[:8]


def test_philox_known_answers():
    """From the authors' Random123 test vectors."""
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    known = {
        ((0, 0, 0, 0), (0, 0)): [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        ((ones, ones, ones, ones), (ones, ones)): [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        pi: [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    }
    for (counter, key), words in known.items():
        assert oracle.philox4x32([counter], key)[0].tolist() == words


# ---- what another program recorded -------------------------------------------------------------------------------------

RECORDED = ["base", "linear", "task_arithmetic lambda=0.3", "task_arithmetic lambda=1",
            "ties scope=tensor density=0.2 lambda=1", "ties scope=model density=0.2 lambda=1",
            "ties scope=model density=0.05 lambda=0.7"]  # fmt: skip


@pytest.mark.parametrize("case", RECORDED)
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_recorded_reference(name, case, tmp_path):
    expected = json.loads((EXPECTED / f"reference-{name}.json").read_text())[case]
    method, *words = case.split()
    settings = {k: v if k == "scope" else float(v) for k, v in (w.split("=") for w in words)}
    config = tools.recipe(name, method, settings, {"weight": 1})
    if method == "base":
        config = tools.recipe(name, "passthrough", names=["base"], base=False)
    result = merged(config, tmp_path, ranks=3)
    assert result.keys() == expected.keys()
    for tensor, (dtype, array) in result.items():
        flat = array.reshape(-1) + np.float32(0)
        assert dtype == "F32"
        assert flat[[0, flat.size // 3, flat.size - 1]].tolist() == expected[tensor]["elements"], tensor
        assert hashlib.sha256(flat.tobytes()).hexdigest() == expected[tensor]["sha256"], tensor
