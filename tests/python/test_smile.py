"""merge_method smile: experts and routers equal NumPy's, and the network that mixes them equals a naive one token by token."""

import json
import re

import h5py
import numpy as np
import pytest
import tools

ABSENT = 1e-5  # directions with a smaller part of the largest singular value are left out
LAYERS = {
    "digits-vit": r"vit\.encoder\.layer\.\d+\.(attention\.(attention\.(query|key|value)|output\.dense)|(intermediate|output)\.dense)",
    "bytes-llama": r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "odd": r"layers\.\d+\.(low|zero|thin|tall)",
}  # fmt: skip


def is_layer(family, name):
    return re.fullmatch(LAYERS[family] + r"\.weight", name) is not None


def svd(a, most):
    """Leading triples, at most `most`, absent directions left out."""
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    k = min(most, np.count_nonzero(s > ABSENT * s[0]))
    return u[:, :k], s[:k], vt[:k]


def tau(model, base, name):
    return (tools.values(model[name]) - tools.values(base[name])).astype(np.float64)


def read_parts(path):
    """{"u/NAME": (dtype, numbers)} of a file's experts."""
    found = {}
    with h5py.File(path) as f:
        for kind in f["experts"]:
            for name, d in f["experts"][kind].items():
                found[f"{kind}/{name}"] = (tools.h5_dtype(d), d[()].astype(np.float64))
    return found


def write_odd(folder):
    """Layers of low rank, unchanged by one model and by all, thinner than k; a matrix outside of the layers, norms, biases."""
    random = np.random.default_rng(5)
    shapes = {"layers.0.low.weight": (40, 60), "layers.0.low.bias": (40,), "layers.0.zero.weight": (30, 20),
              "layers.1.thin.weight": (2, 50), "layers.1.tall.weight": (90, 24), "layers.1.norm.weight": (24,),
              "layers.1.norm.bias": (24,), "layers.1.embeddings.weight": (16, 24), "head.weight": (10, 24)}  # fmt: skip
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    base["head.weight"][0] = -0.0
    models = {"base": base}
    for i, model in enumerate("xyz"):
        change = {n: 0.1 * random.standard_normal(s) for n, s in shapes.items()}
        change["layers.0.low.weight"] = random.standard_normal((40, 3)) @ random.standard_normal((3, 60)) * (i > 0)
        change["layers.0.zero.weight"] = np.zeros((30, 20))
        models[model] = {n: (base[n] + change[n]).astype(np.float32) for n in shapes}
    for model, values in models.items():
        tools.write_folder(folder / model, {n: ("F32", v) for n, v in values.items()})
    return folder


def check_layer(name, base, models, parts, k, kg, tolerance):
    u, sigma, v = (parts[f"{kind}/{name}"][1] for kind in ("u", "sigma", "v"))
    short = min(base[name][1].shape)
    assert u.shape[1] == sigma.shape[1] == min(k, short) and v.shape[1] == min(max(k, kg), short)
    for i, model in enumerate(models):
        change = tau(model, base, name)
        want_u, want_s, want_v = svd(change, max(k, kg))
        want = want_u[:, :k] * want_s[:k] @ want_v[:k]
        found = u[i].T * sigma[i] @ v[i, : u.shape[1]]
        assert np.linalg.norm(found - want) <= tolerance * np.linalg.norm(want), f"{name} of model {i}"
        router, want_router = v[i, :kg], want_v[:kg]
        off = np.linalg.norm(router.T @ router - want_router.T @ want_router)
        assert off <= 1e3 * tolerance * np.sqrt(kg), f"router of {name}, model {i}: {off}"


@pytest.mark.parametrize("family, k, kg, dtype", [
    ("digits-vit", 32, 16, "float32"),
    ("bytes-llama", 8, 24, "float32"),
    ("bytes-llama", 1, 1, "bfloat16"),
    ("odd", 5, 2, "float32"),
])  # fmt: skip
def test_experts_are_those_of_numpy(family, k, kg, dtype, tmp_path):
    folder = write_odd(tmp_path / "odd") if family == "odd" else tools.MODELS / family
    names = list("xyz") if family == "odd" else tools.TASKS[family]
    config = {"merge_method": "smile", "base_model": str(folder / "base"), "out_dtype": dtype,
              "parameters": {"k": k, "kg": kg}, "models": [{"model": str(folder / n)} for n in names]}  # fmt: skip
    base, models = tools.read_model(folder / "base"), [tools.read_model(folder / n) for n in names]
    for ranks in (1, 2, 3):
        result = tools.merge(config, tmp_path / f"{ranks}.h5", ranks=ranks)
        assert ("is of no family with a native evaluator" in result.err) == (family == "odd"), result
    raw = [(tmp_path / f"{ranks}.h5").read_bytes() for ranks in (1, 2, 3)]
    assert raw[0] == raw[1] == raw[2], "the ranks differ"

    stored = "F32" if dtype == "float32" else "BF16"
    for name, (_, array) in tools.read_model(tmp_path / "1.h5").items():
        assert array.tobytes() == tools.narrow(tools.values(base[name]), stored).tobytes(), f"{name} is not the base's"
    parts = read_parts(tmp_path / "1.h5")
    layers = {n for n in base if is_layer(family, n)}
    biases = {n.replace("weight", "bias") for n in layers} & base.keys()
    assert layers and parts.keys() == {f"{p}/{n}" for p in ("u", "sigma", "v") for n in layers} | {f"bias/{n}" for n in biases}
    tolerance = 1e-5 if stored == "F32" else 1e-2
    for name in layers:
        assert [parts[f"{kind}/{name}"][0] for kind in ("u", "v", "sigma")] == [stored, stored, "F32"]
        check_layer(name, base, models, parts, k, kg, tolerance)
    for name in biases:
        for found, model in zip(parts[f"bias/{name}"][1], models):
            assert np.allclose(found, tau(model, base, name), rtol=2**-8 if stored == "BF16" else 0, atol=0)
    with h5py.File(tmp_path / "1.h5") as f:
        a = f["experts"].attrs
        assert [a["method"], list(a["names"]), a["kg"], a["k"], a["top_k"]] == ["smile", names, kg, k, 1]


# ---- the network -------------------------------------------------------------------------------------------------------

FAMILY = tools.MODELS / "digits-vit"


def heads(family):
    tasks = tools.TASKS[family] if family == "digits-vit" else []
    return [word for task in tasks for word in ("--head", f"{task}={tools.MODELS / family / task}")]


HEADS = heads("digits-vit")


def mixed_network(family, base, models, k, kg, top_k):
    """The base's transformers model in float64 whose linear layers mix experts, one token after the other."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    class Mixed(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            weight, bias = f"{name}.weight", f"{name}.bias"
            self.weight = tools.values(base[weight]).astype(np.float64)
            self.bias = tools.values(base[bias]).astype(np.float64) if bias in base else 0
            taus = [tau(m, base, weight) for m in models]
            triples = [svd(t, max(k, kg)) for t in taus]
            self.routers = [v[:kg] for _, _, v in triples]
            self.experts = [u[:, :k] * s[:k] @ v[:k] for u, s, v in triples]
            self.shifts = [tau(m, base, bias) if bias in base else 0 for m in models]

        def forward(self, inputs):
            x = inputs.numpy().reshape(-1, inputs.shape[-1])
            y = x @ self.weight.T + self.bias
            logits = np.stack([np.linalg.norm(x @ r.T, axis=1) for r in self.routers], 1)
            for row, token, logit in zip(y, x, logits):
                if not logit.any():
                    continue
                top = np.argsort(-logit, kind="stable")[:top_k]
                shares = np.exp(logit[top] - logit[top].max())
                for i, share in zip(top, shares / shares.sum()):
                    row += share * (self.experts[i] @ token + self.shifts[i])
            return torch.from_numpy(y).reshape(*inputs.shape[:-1], -1)

    loader = transformers.ViTForImageClassification if family == "digits-vit" else transformers.LlamaForCausalLM
    network = loader.from_pretrained(tools.MODELS / family / "base").double().eval()
    layers = {n[: -len(".weight")]: tools.values(base[n]) for n in base if is_layer(family, n)}
    for module_name, module in list(network.named_modules()):
        if not isinstance(module, torch.nn.Linear):
            continue
        weight = module.weight.detach().numpy()
        same = [n for n, stored in layers.items() if np.array_equal(stored, weight)]
        if same:  # versions of transformers name the modules differently
            parent, _, last = module_name.rpartition(".")
            setattr(network.get_submodule(parent), last, Mixed(same[0]))
            del layers[same[0]]
    assert not layers
    return network


def correct_counts(family, network, tuned, path):
    """Right answers: classes with each task's own head, or next tokens."""
    import torch

    found = {}
    with h5py.File(path) as f, torch.no_grad():
        for task in tools.TASKS[family]:
            if family == "digits-vit":
                hidden = network.vit(torch.from_numpy(f[task]["inputs"][:].astype(np.float64))).last_hidden_state[:, 0].numpy()
                weight, bias = (tools.values(tuned[task][f"classifier.{p}"]) for p in ("weight", "bias"))
                found[task] = int(((hidden @ weight.T + bias).argmax(1) == f[task]["labels"][:]).sum())
            else:
                ids = torch.from_numpy(f[task]["input_ids"][:].astype(np.int64))
                found[task] = int((network(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]).sum())
    return found


def write_samples(family, path, samples):
    with h5py.File(tools.MODELS / family / "calibration.h5") as f, h5py.File(path, "w") as out:
        for task in tools.TASKS[family]:
            for kind, values in f[task].items():
                out[f"{task}/{kind}"] = values[:samples]
    return path


def score(model, data, *options, ranks=0):
    result = tools.run(tools.EVAL, model, "--data", data, *options, "--json", ranks=ranks)
    assert result.code == 0, result
    return result.out


def distort(family, base, tuned):
    """Layers whose weights changed in no model, in all but one, and one task vector of low rank."""
    unchanged, half, low = sorted(n for n in base if is_layer(family, n))[1:6:2]
    first, second = tools.TASKS[family][:2]
    for model in tuned.values():
        model[unchanged] = base[unchanged]
    tuned[first][half] = base[half]
    u, s, vt = svd(tau(tuned[second], base, low), 3)
    tuned[second][low] = ("F32", (tools.values(base[low]) + u * s @ vt).astype(np.float32))


@pytest.mark.parametrize("family, top_k, samples", [("digits-vit", 1, 20), ("digits-vit", 3, 5), ("bytes-llama", 1, 2)])
def test_scores_are_those_of_a_naive_network(family, top_k, samples, tmp_path):
    k, kg, folder, tasks = 12, 6, tools.MODELS / family, tools.TASKS[family]
    base = tools.read_model(folder / "base")
    tuned = {t: tools.read_model(folder / t) for t in tasks}
    distort(family, base, tuned)
    for task, model in tuned.items():
        tools.write_folder(tmp_path / task, model, json.loads((folder / task / "config.json").read_text()))
    config = {"merge_method": "smile", "base_model": str(folder / "base"), "models": [{"model": str(tmp_path / t)} for t in tasks],
              "parameters": {"k": k, "kg": kg, "top_k": top_k}, "dtype": "float32"}  # fmt: skip
    tools.merge(config, tmp_path / "smile.h5", ranks=2)
    data = write_samples(family, tmp_path / "data.h5", samples)
    outputs = [score(tmp_path / "smile.h5", data, *heads(family), ranks=ranks) for ranks in (1, 3)]
    assert outputs[0] == outputs[1], "the ranks differ"
    found = {t: s["correct"] for t, s in json.loads(outputs[0])["tasks"].items()}
    want = correct_counts(family, mixed_network(family, base, list(tuned.values()), k, kg, top_k), tuned, data)
    assert all(abs(found[t] - want[t]) <= 1 for t in tasks), f"{found} {want}"
    of_base = json.loads(score(folder / "base", data, *heads(family)))
    assert abs(json.loads(outputs[0])["average"]["nll"] / of_base["average"]["nll"] - 1) > 0.01, "the base without experts"


def test_all_triples_of_one_model_are_that_model(tmp_path):
    """One expert of full rank that every token takes: base + τ, but for what lies outside of the linear layers."""
    base, plain = tools.read_model(FAMILY / "base"), tools.read_model(FAMILY / "plain")
    mixed = {n: plain[n] if re.match(LAYERS["digits-vit"], n) or n.startswith("classifier") else base[n] for n in plain}
    tools.write_folder(tmp_path / "plain", mixed, json.loads((FAMILY / "plain/config.json").read_text()))
    config = tools.recipe("digits-vit", "smile", {"k": 128}, names=["plain"])
    tools.merge(config, tmp_path / "smile.h5")
    options = ("--group", "plain", "--head", FAMILY / "plain")
    a, b = (json.loads(score(m, FAMILY / "calibration.h5", *options))["tasks"]["plain"] for m in (tmp_path / "smile.h5", tmp_path / "plain"))
    assert a["correct"] == b["correct"] and a["nll"] == pytest.approx(b["nll"], rel=1e-5)


def test_score_and_size_by_default(tmp_path):
    """(kg, k) = (16, 32): 0.8563 or better, at most 60 % of the parameters of all models."""
    tasks = tools.TASKS["digits-vit"]
    tools.merge(tools.recipe("digits-vit", "smile"), tmp_path / "smile.h5")
    average = json.loads(score(tmp_path / "smile.h5", FAMILY / "calibration.h5", *HEADS))["average"]["accuracy"]
    assert average >= 0.8562
    shown = json.loads(tools.run(tools.INSPECT, tmp_path / "smile.h5", "--json").out)
    experts = shown["experts"]
    parts = read_parts(tmp_path / "smile.h5")
    assert experts["names"] == tasks and [experts[p] for p in ("kg", "k", "top_k")] == [16, 32, 1]
    assert experts["parameters"] == sum(values.size for _, values in parts.values())
    assert [t["name"] for t in experts["tensors"]] == sorted(parts)
    assert shown["parameters"] + experts["parameters"] <= 0.6 * len(tasks) * shown["parameters"]
    text = tools.run(tools.INSPECT, tmp_path / "smile.h5").out
    assert "plain, rot90" in text and "rank 32, routers of 16 directions, top 1" in text


# ---- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters, model_parameters, out, message", [
    ({}, {}, "folder", "a Hugging Face folder has no place: expected an output whose name ends in .h5"),
    ({"k": 1.5}, {}, "out.h5", "k: expected a whole number, found 1.5"),
    ({"k": 0}, {}, "out.h5", "'k' must lie in [1, "),
    ({"kg": [4, 8]}, {}, "out.h5", "kg: expected "),
    ({"top_k": 9}, {}, "out.h5", "top_k: expected at most 8, the number of models, found 9"),
    ({}, {"weight": 0.5}, "out.h5", "the method has no weights, expected weight 1, found 0.5"),
])  # fmt: skip
def test_configs_that_are_refused(parameters, model_parameters, out, message, tmp_path):
    config = tools.recipe("digits-vit", "smile", parameters, model_parameters)
    result = tools.merge(config, tmp_path / out, code=2)
    assert message in result.err
    assert not (tmp_path / out).exists()


def test_a_model_without_linear_layers_is_refused(tmp_path):
    for name in ("base", "x"):
        tools.write_folder(tmp_path / name, {"norm.weight": ("F32", np.ones(4, np.float32))})
    config = {"merge_method": "smile", "base_model": str(tmp_path / "base"), "models": [{"model": str(tmp_path / "x")}]}
    assert "smile finds no linear layer in the base model" in tools.merge(config, tmp_path / "out.h5", code=3).err


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    path = tmp_path_factory.mktemp("smile") / "smile.h5"
    tools.merge(tools.recipe("digits-vit", "smile", {"k": 2, "kg": 2}, names=["plain", "blur"]), path)
    return path


def test_a_mixture_cannot_be_merged_again(mixture, tmp_path):
    config = {"merge_method": "linear", "models": [{"model": str(mixture), "parameters": {"weight": 1}}]}
    assert "is a mixture of experts, which cannot be merged" in tools.merge(config, tmp_path / "out.h5", ranks=2, code=3).err


NAME = "vit.encoder.layer.0.output.dense"


def without_names(f):
    del f["experts"].attrs["names"]


def too_many_chosen(f):
    f["experts"].attrs["top_k"] = 3


def without_sigma(f):
    del f[f"experts/sigma/{NAME}.weight"]


def without_left_vectors(f):
    del f[f"experts/u/{NAME}.weight"]


def of_another_shape(f):
    del f[f"experts/v/{NAME}.weight"]
    f[f"experts/v/{NAME}.weight"] = np.zeros((2, 2, 5), np.float32)


def for_a_norm(f):
    f["experts/u/vit.layernorm.weight"] = np.zeros((2, 2, 128), np.float32)


@pytest.mark.parametrize("damage, message", [
    (without_names, "/experts has no attribute 'names'"),
    (too_many_chosen, "/experts: top_k: expected 1 to 2, found 3"),
    (without_sigma, f"the experts lack sigma/{NAME}.weight"),
    (without_left_vectors, "belongs to no linear layer of the network"),
    (of_another_shape, f"tensor v/{NAME}.weight: expected shape [2, 2, 256] by config.json, found [2, 2, 5]"),
    (for_a_norm, "/experts/u/vit.layernorm.weight belongs to no linear layer of the network"),
])  # fmt: skip
def test_damaged_mixtures_are_refused(mixture, damage, message, tmp_path):
    path = tmp_path / "damaged.h5"
    path.write_bytes(mixture.read_bytes())
    with h5py.File(path, "r+") as f:
        damage(f)
    result = tools.run(tools.EVAL, path, "--data", FAMILY / "calibration.h5", *HEADS, ranks=2)
    assert result.code == 3 and message in result.err, result
