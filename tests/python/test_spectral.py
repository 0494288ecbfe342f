"""Methods on singular vectors equal naive NumPy, on both example families and on matrices that are not of full rank."""

import json

import numpy as np
import pytest
import tools

# Directions with a smaller part of the largest singular value are rounding noise and left out.
ABSENT = 1e-5


def svd(a, most=None):
    """Leading triples, at most `most`, absent directions left out."""
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    k = min(len(s) if most is None else most, np.count_nonzero(s > ABSENT * s[0]))
    return u[:, :k], s[:k], vt[:k]


def polar(a):
    u, _, vt = svd(a)
    return u @ vt


def joined(parts, values=None):
    """The triples of several decompositions put together: polar factors of both sides, with their values or given ones."""
    u, s, vt = np.hstack([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), np.vstack([p[2] for p in parts])
    if len(s) == 0:
        return np.zeros((u.shape[0], vt.shape[1]))
    return polar(u) * (s if values is None else values) @ polar(vt)


def tsv_m(taus, alpha):
    k = max(1, min(taus[0].shape) // len(taus))
    return alpha * joined([svd(t, k) for t in taus])


def iso_c(taus, alpha):
    total = sum(taus)
    if not total.any():
        return total
    return alpha * np.linalg.svd(total, compute_uv=False).mean() * polar(total)


def iso_cts(taus, alpha, fraction=0.8):
    r, count = min(taus[0].shape), len(taus)
    each = round((r - int(r * fraction)) / count)
    each = min(each, r // count)
    common = svd(sum(taus), r - each * count)
    parts = [common] + [svd(t - common[0] @ (common[0].T @ t), each) for t in taus]
    return alpha * joined(parts, sum(p[1].sum() for p in parts) / r)


def trim(x, density):
    """The largest magnitudes, of equal ones the earliest."""
    keep = max(1, int(np.floor(density * x.size)))
    flat = np.zeros(x.size)
    order = np.argsort(-np.abs(x.ravel()), kind="stable")[:keep]
    flat[order] = x.ravel()[order]
    return flat.reshape(x.shape)


def ties(blocks, weights, density, lam, normalize):
    blocks = [w * trim(b, density) for b, w in zip(blocks, weights)]
    sign = np.where(sum(blocks) >= 0, 1, -1)
    stays = [(b != 0) & (np.sign(b) == sign) for b in blocks]
    total = lam * sum(b * s for b, s in zip(blocks, stays))
    divisor = sum(w * s for w, s in zip(weights, stays))
    return total / np.where(divisor == 0, 1, divisor) if normalize else total


def knots(taus, weights, density, lam, normalize):
    """With unweighted task vectors."""
    if taus[0].ndim != 2 or min(taus[0].shape) < 2:
        return ties(taus, weights, density, lam, normalize)
    u, s, vt = svd(np.hstack(taus))
    u, s, vt = u[:, s > 1e-4], s[s > 1e-4], vt[s > 1e-4]
    if len(s) == 0:
        return np.zeros_like(taus[0])
    blocks = s[:, None] * vt
    blocks[np.abs(blocks) <= 1e-12 * s[0]] = 0  # rounding noise of models that did not change
    return u @ ties(np.split(blocks, len(taus), axis=1), weights, density, lam, normalize)


METHODS = {"tsv_m": tsv_m, "iso_c": iso_c, "iso_cts": iso_cts}


def expected(base, models, function, weights, **parameters):
    """{name: float64} of a merge of stored tensors."""
    found = {}
    for name, stored in base.items():
        b = tools.values(stored)
        taus = [w * (tools.values(m[name]) - b).astype(np.float64) for w, m in zip(weights, models)]
        if b.ndim == 2 and min(b.shape) >= 2:
            update = function(taus, **parameters)
        else:
            update = parameters["alpha"] * np.mean(taus, 0)
        found[name] = b.astype(np.float64) + update
    return found


def assert_near(merged, base, wanted):
    """‖difference‖ ≤ 1e-5 of the update's norm, tensor by tensor, both rounded to float32."""
    assert merged.keys() == wanted.keys()
    for name, want in wanted.items():
        want = want.astype(np.float32).astype(np.float64)
        update = np.linalg.norm(want - tools.values(base[name]))
        off = np.linalg.norm(tools.values(merged[name]).astype(np.float64) - want)
        assert off <= 1e-5 * update, f"{name}: off by {off}, the update is {update}"


def read(path):
    return tools.read_model(path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", tools.TASKS)
def test_families(family, method, tmp_path):
    alpha = 1.3
    folder = tools.MODELS / family
    base = read(folder / "base")
    models = [read(folder / task) for task in tools.TASKS[family]]
    wanted = expected(base, models, METHODS[method], [1] * len(models), alpha=alpha)
    first = None
    for ranks in (1, 3):
        out = tmp_path / f"{ranks}.h5"
        tools.merge(tools.recipe(family, method, {"alpha": alpha}, dtype="float32"), out, ranks=ranks)
        merged = tools.read_model(out)
        first = first or merged
        assert tools.same_tensors(first, merged), "the ranks differ"
    assert_near(first, base, wanted)


@pytest.mark.parametrize("parameters", [{}, {"density": 0.3, "lambda": 1.2, "normalize": False}], ids=["plain", "sparse"])
@pytest.mark.parametrize("family", [*tools.TASKS, "odd"])
def test_knots(family, parameters, odd, tmp_path):
    names = ["x", "y", "z"] if family == "odd" else tools.TASKS[family]
    folder = odd if family == "odd" else tools.MODELS / family
    weights = [round(0.4 + 0.2 * i, 2) for i in range(len(names))]
    config = {"merge_method": "knots", "base_model": str(folder / "base"), "dtype": "float32", "parameters": parameters,
              "models": [{"model": str(folder / n), "parameters": {"weight": w}} for n, w in zip(names, weights)]}  # fmt: skip
    base, models = read(folder / "base"), [read(folder / n) for n in names]
    wanted = {}
    for name, stored in base.items():
        b = tools.values(stored)
        taus = [(tools.values(m[name]) - b).astype(np.float64) for m in models]
        wanted[name] = b + knots(taus, weights, parameters.get("density", 1), parameters.get("lambda", 1),
                                 parameters.get("normalize", True))  # fmt: skip
    first = None
    for ranks in (1, 3):
        tools.merge(config, tmp_path / f"{ranks}.h5", ranks=ranks)
        merged = tools.read_model(tmp_path / f"{ranks}.h5")
        first = first or merged
        assert tools.same_tensors(first, merged), "the ranks differ"
    assert_near(first, base, wanted)


def opcm(base, models, alpha, mode):
    """{name: float64}: models one at a time, full bases, then the whole update scaled to the mean norm."""
    taus = [{n: (tools.values(m[n]) - tools.values(base[n])).astype(np.float64) for n in base} for m in models]
    merged = {n: t.copy() for n, t in taus[0].items()}
    for tau in taus[1:]:
        for name, x in tau.items():
            if x.ndim == 2 and min(x.shape) >= 2 and merged[name].any():
                u, s, vt = np.linalg.svd(merged[name], full_matrices=True)
                p = u.T @ x @ vt.T
                for k in np.flatnonzero(s > ABSENT * s[0]):
                    p[k, k] = 0
                if mode == "block":
                    r = int(np.argmax(np.cumsum(s) > alpha * s.sum()))
                    p[:r, :r] = 0
                else:
                    r = min(int(np.argmax(np.cumsum(s) >= alpha * s.sum())) + 1, np.count_nonzero(s > ABSENT * s[0]))
                    p[:r], p[:, :r] = 0, 0
                x = u @ p @ vt
            merged[name] = merged[name] + x
    norm = lambda tensors: np.sqrt(sum((t**2).sum() for t in tensors.values()))
    factor = np.mean([norm(t) for t in taus]) / norm(merged)
    return {n: tools.values(base[n]).astype(np.float64) + factor * merged[n] for n in base}


@pytest.mark.parametrize("mode, alpha", [("block", 0.5), ("paper", 0.5), ("block", 0.8), ("paper", 0.2)])
@pytest.mark.parametrize("family", [*tools.TASKS, "odd"])
def test_opcm(family, mode, alpha, odd, tmp_path):
    names = ["x", "y", "z"] if family == "odd" else tools.TASKS[family]
    folder = odd if family == "odd" else tools.MODELS / family
    config = {"merge_method": "opcm", "base_model": str(folder / "base"), "dtype": "float32",
              "parameters": {"mode": mode, "alpha": alpha}, "models": [{"model": str(folder / n)} for n in names]}  # fmt: skip
    base, models = read(folder / "base"), [read(folder / n) for n in names]
    models = [{n: m[n] for n in base} for m in models]
    first = None
    for ranks in (1, 3, 8):
        tools.merge(config, tmp_path / f"{ranks}.h5", ranks=ranks)
        merged = tools.read_model(tmp_path / f"{ranks}.h5")
        first = first or merged
        assert tools.same_tensors(first, merged), "the ranks differ"
    assert_near(first, base, opcm(base, models, alpha, mode))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Task vectors of low rank, one that is 0, a matrix that no model changes, one thinner than the models are many."""
    folder = tmp_path_factory.mktemp("odd")
    random = np.random.default_rng(3)
    shapes = {"low": (40, 60), "zero": (30, 20), "thin": (2, 50), "tall": (90, 24), "row": (1, 64), "bias": (70,)}
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    tensors = {"base": base}
    for i, model in enumerate(("x", "y", "z")):
        tau = {n: 0.1 * random.standard_normal(s) for n, s in shapes.items()}
        tau["low"] = random.standard_normal((40, 3)) @ random.standard_normal((3, 60)) * (i > 0)
        tau["zero"] = np.zeros((30, 20))
        tensors[model] = {n: (base[n] + tau[n]).astype(np.float32) for n in shapes}
    for model, values in tensors.items():
        tools.write_folder(folder / model, {n: ("F32", v) for n, v in values.items()})
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_matrices_without_full_rank(odd, method, tmp_path):
    base, models = read(odd / "base"), [read(odd / m) for m in ("x", "y", "z")]
    weights = [1, 0.5, -0.25] if method == "iso_cts" else [1, 1, 1]
    config = {"merge_method": method, "base_model": str(odd / "base"), "dtype": "float32",
              "models": [{"model": str(odd / m), "parameters": {"weight": w}} for m, w in zip("xyz", weights)]}  # fmt: skip
    first = None
    for ranks in (1, 2, 8):
        out = tmp_path / f"{ranks}.h5"
        tools.merge(config, out, ranks=ranks)
        merged = tools.read_model(out)
        first = first or merged
        assert tools.same_tensors(first, merged), "the ranks differ"
    assert_near(first, base, expected(base, models, METHODS[method], weights, alpha=1))
    assert np.array_equal(tools.values(first["zero"]), tools.values(base["zero"])), "nothing changed it"


def test_weights_are_refused_where_the_method_has_none(odd, tmp_path):
    for method in ("tsv_m", "iso_c", "opcm"):
        config = {"merge_method": method, "base_model": str(odd / "base"),
                  "models": [{"model": str(odd / "x"), "parameters": {"weight": 0.5}}, {"model": str(odd / "y")}]}  # fmt: skip
        result = tools.merge(config, tmp_path / "out.h5", code=2)
        assert "the method has no weights, expected weight 1, found 0.5" in result.err


def test_memory_that_a_matrix_needs_is_asked_for(odd, tmp_path):
    config = {"merge_method": "tsv_m", "base_model": str(odd / "base"), "models": [{"model": str(odd / "x")}],
              "resources": {"memory_per_rank": "1MiB"}}  # fmt: skip
    assert "needs at least" in tools.merge(config, tmp_path / "out.h5", code=2).err


def test_spectra_are_those_of_numpy(odd):
    """nps-inspect --spectrum: values, energy and effective rank, of a model and of a difference, on any number of ranks."""
    base, model = read(odd / "base"), read(odd / "x")
    for against in (False, True):
        first = None
        for ranks in (1, 3):
            options = ("--against", odd / "base") if against else ()
            result = tools.run(tools.INSPECT, odd / "x", "--spectrum", 5, "--json", *options, ranks=ranks)
            assert result.code == 0, result
            found = json.loads(result.out)["spectrum"]
            first = first or found
            assert found == first, "the ranks differ"
        assert [s["name"] for s in found] == [n for n in sorted(model) if model[n][1].ndim == 2 and min(model[n][1].shape) > 1]
        for s in found:
            a = tools.values(model[s["name"]]).astype(np.float64)
            a = a - tools.values(base[s["name"]]) if against else a
            sigma = np.linalg.svd(a, compute_uv=False)
            count = min(5, len(sigma))
            assert s["shape"] == list(a.shape) and len(s["sigma"]) == count
            assert s["norm"] == pytest.approx(np.linalg.norm(a), rel=1e-12)
            assert np.allclose(s["sigma"], sigma[:count], rtol=0, atol=1e-7 * sigma[0])
            if not a.any():
                assert s["effective_rank"] == 0 and s["energy"] == 1
                continue
            p = sigma[sigma > 0] / sigma.sum()
            assert s["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
            assert s["energy"] == pytest.approx((sigma[:count] ** 2).sum() / (sigma**2).sum(), rel=1e-12)


def test_spectra_are_shown(odd):
    result = tools.run(tools.INSPECT, odd / "x", "--against", odd / "base", "--spectrum", 3)
    assert result.code == 0 and "effective rank" in result.out and "low" in result.out, result
