"""A base with an adapter: as the peft library merges it, or as NumPy does."""

import hashlib
import json
import shutil

import h5py
import numpy as np
import oracle
import pytest
import tools

LINEAR = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]


def llama(**more):
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=32, tie_word_embeddings=False, **more)  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2():
    import transformers

    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16))


def bert():
    import transformers

    return transformers.BertForSequenceClassification(transformers.BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64))  # fmt: skip


def train(model, config, folder, seed):
    """Save the base, then an adapter whose numbers are all random; the merged tensors, by the peft library."""
    import peft
    import torch

    model.save_pretrained(folder / "base")
    torch.manual_seed(seed)
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if p.requires_grad:
                p.copy_(p * 1.1 + 0.05 * torch.randn_like(p)) if "magnitude" in name else p.add_(0.2 * torch.randn_like(p))
    tuned.save_pretrained(folder / "adapter")
    return {n: t.detach().float().numpy() for n, t in tuned.merge_and_unload().state_dict().items()}


def lora(**more):
    import peft

    return peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": LINEAR, **more})


def ia3(**more):
    import peft

    return peft.IA3Config(**more)


CASES = {
    "lora": (llama, lambda: lora()),
    "rslora": (llama, lambda: lora(use_rslora=True)),
    "patterns": (llama, lambda: lora(use_rslora=True, rank_pattern={"k_proj": 3, r"layers\.\d+\.mlp\.gate_proj": 7},
                                     alpha_pattern={"layers.1.self_attn.q_proj": 2, "(o|k)_proj": 5})),
    "lists": (llama, lambda: lora(rank_pattern={"down_proj": 2}, layers_to_transform=[1], bias="none")),
    "bias all": (lambda: llama(attention_bias=True), lambda: lora(bias="all")),
    "bias lora_only": (lambda: llama(attention_bias=True, mlp_bias=True), lambda: lora(bias="lora_only")),
    "lora_bias": (lambda: llama(attention_bias=True, mlp_bias=True), lambda: lora(lora_bias=True, use_rslora=True)),
    "embeddings": (llama, lambda: lora(target_modules=["embed_tokens", "q_proj", "lm_head"])),
    "modules_to_save": (llama, lambda: lora(modules_to_save=["lm_head", "norm"])),
    "fan_in_fan_out": (gpt2, lambda: lora(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "embeddings of gpt2": (gpt2, lambda: lora(target_modules=["wte", "wpe"])),
    "dora": (llama, lambda: lora(use_dora=True)),
    "dora, fan_in_fan_out": (gpt2, lambda: lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True)),
    "dora, embeddings": (llama, lambda: lora(target_modules=["embed_tokens", "v_proj"], use_dora=True, use_rslora=True)),
    "classifier": (bert, lambda: lora(target_modules=["query", "dense"], task_type="SEQ_CLS")),
    "ia3": (llama, lambda: ia3(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3, biases": (bert, lambda: ia3(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"],
                                      task_type="SEQ_CLS")),
    "ia3, fan_in_fan_out": (gpt2, lambda: ia3(target_modules=["c_attn", "mlp.c_proj", "c_fc"], feedforward_modules=["mlp.c_proj"],
                                              fan_in_fan_out=True)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_merges_as_peft_does(case, tmp_path):
    build, config = CASES[case]
    want = train(build(), config(), tmp_path, 7)
    result = tools.run(tools.CONVERT, f"{tmp_path}/base+{tmp_path}/adapter", tmp_path / "out")
    assert result.code == 0, result
    got = {n: tools.values(t) for n, t in tools.read_model(tmp_path / "out").items()}
    base = tools.read_model(tmp_path / "base")
    assert got.keys() >= base.keys() and got.keys() <= want.keys()
    moved = 0
    for name, x in got.items():
        bound = 5e-7 * np.abs(want[name]).max()  # peft computes in float32
        assert np.abs(x - want[name]).max() <= bound, name
        moved += name not in base or np.abs(x - tools.values(base[name])).max() > 1000 * bound
    assert moved >= 2


# ---- NumPy oracles -----------------------------------------------------------------------------------------------------

DIGITS = tools.MODELS / "digits-vit"
BYTES = tools.MODELS / "bytes-llama"


def numbers(folder):
    return {n: tools.values(t) for n, t in tools.read_model(folder).items()}


def write_adapter(folder, tensors, **config):
    """tensors: {name behind base_model.model.: array or (dtype, bits)}."""
    folder.mkdir(exist_ok=True)
    stored = {f"base_model.model.{n}": t if isinstance(t, tuple) else ("F32", np.asarray(t, np.float32)) for n, t in tensors.items()}
    tools.write_safetensors(folder / "adapter_model.safetensors", stored)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def random_lora(folder, base, seed, rank=3, ends=("query.weight", "intermediate.dense.weight"), size=0.1, **config):
    """An adapter of the base's matrices with some names, and base + it in float64."""
    random = np.random.default_rng(seed)
    parts, want = {}, {n: x.astype(np.float64) for n, x in numbers(base).items()}
    config = {"r": rank, "lora_alpha": 2 * rank, **config}
    for name in [n for n in want if n.endswith(ends)]:
        b, a = (size * random.standard_normal(s).astype(np.float32) for s in ((want[name].shape[0], rank), (rank, want[name].shape[1])))
        module = name.removesuffix(".weight")
        parts.update({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b})
        product = b.astype(np.float64) @ a.astype(np.float64)
        if "sine_omega" in config:
            product = np.sin(config["sine_omega"] * product) / np.sqrt(a.shape[1])
        want[name] = want[name] + config["lora_alpha"] / rank * product
    assert parts
    write_adapter(folder, parts, **config)
    return want


def converted(model, out, ranks=0):
    result = tools.run(tools.CONVERT, model, out, ranks=ranks)
    assert result.code == 0, result
    return tools.read_model(out)


def test_sine_activated_low_rank(tmp_path):
    want = random_lora(tmp_path / "a", DIGITS / "base", 1, size=0.5, sine_omega=7.5)
    got = converted(f"{DIGITS}/base+{tmp_path}/a", tmp_path / "out.h5")
    for name, (dtype, x) in got.items():
        assert dtype == "F32" and np.array_equal(x, want[name].astype(np.float32)) or np.abs(x - want[name]).max() < 1e-7 * np.abs(x).max()


def sara(folder, base, threshold, seed, dtype="F32", more=0):
    """Values for the entries of some tensors below a threshold; what the tensors are then."""
    random = np.random.default_rng(seed)
    lists, want = {}, dict(numbers(base))
    for name in list(want)[1::3]:
        x = want[name].astype(np.float32).copy()
        rounded = lambda x: tools.values((dtype, tools.narrow(np.float64(x), dtype)))
        below = np.abs(rounded(x)) < rounded(threshold)  # as PyTorch compares
        new = tools.narrow(x[below] + 1e-3 * random.standard_normal(below.sum()), dtype)
        lists[name] = (dtype, np.concatenate([new, np.zeros(more, new.dtype)]))
        x[below] = tools.values((dtype, new))
        want[name] = x
    folder.mkdir(exist_ok=True)
    tools.write_safetensors(folder / "sara.safetensors", lists, {"threshold": repr(threshold)})
    return want


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_sara(dtype, tmp_path):
    """digits-vit is float32; on several ranks too, which begin within tensors."""
    want = sara(tmp_path / "a", DIGITS / "base", 0.02, 3, dtype)
    moved = sum((want[n] != x).sum() for n, x in numbers(DIGITS / "base").items())
    assert moved > 20000
    for ranks in (0, 3):
        got = converted(f"{DIGITS}/base+{tmp_path}/a", tmp_path / f"out{ranks}", ranks)
        assert all(np.array_equal(x, want[n]) for n, (_, x) in got.items())


@pytest.mark.parametrize("more, text", [(1, "fewer of the base's lie below"), (-1, "more of the base's lie below")])
def test_sara_of_another_base(more, text, tmp_path):
    sara(tmp_path / "a", DIGITS / "base", 0.02, 3, more=max(more, 0))
    if more < 0:
        lists = tools.read_safetensors(tmp_path / "a/sara.safetensors")
        tools.write_safetensors(tmp_path / "a/sara.safetensors", {n: (d, x[:-1]) for n, (d, x) in lists.items()}, {"threshold": "0.02"})
    result = tools.run(tools.CONVERT, f"{DIGITS}/base+{tmp_path}/a", tmp_path / "out", ranks=2)
    assert result.code == 3 and text in result.err, result
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("there, here", [("transformer.h.0", "h.0"), ("encoder.0", "bert.encoder.0")])
def test_names_of_a_base_with_another_head(there, here, tmp_path):
    """A model without a head lacks the first component of its names in one with a head, or the other way round."""
    random = np.random.default_rng(4)
    w, a, b = (random.standard_normal(s).astype(np.float32) for s in ((4, 6), (2, 6), (4, 2)))
    other = f"{here.split('.')[0]}.1.norm.weight"
    tools.write_folder(tmp_path / "base", {f"{here}.fc.weight": ("F32", w), other: ("F32", w[0]), "norm.weight": ("F32", w[0])})
    tensors = {f"{there}.fc.lora_A.weight": a, f"{there}.fc.lora_B.weight": b, "classifier.weight": w[1]}
    write_adapter(tmp_path / "a", tensors, r=1, rank_pattern={f"{there}.fc": 2}, lora_alpha=2, modules_to_save=["classifier"])
    got = converted(f"{tmp_path}/base+{tmp_path}/a", tmp_path / "out")
    assert got.keys() == {f"{here}.fc.weight", other, "norm.weight", "classifier.weight"}
    want = w + b.astype(np.float64) @ a.astype(np.float64)
    assert np.array_equal(got[f"{here}.fc.weight"][1], want.astype(np.float32)) and np.array_equal(got["classifier.weight"][1], w[1])


@pytest.mark.parametrize("dtype", ["BF16", "F64"])
def test_large_tensors(dtype, tmp_path):
    """Matrices of several blocks: in any order of storage, with norms by rows and by columns, cut among ranks anywhere."""
    random = np.random.default_rng(8)
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
    rows, columns, rank = 611, 997, 5
    base = {f"{n}.weight": (dtype, tools.narrow(draw(rows, columns), dtype)) for n in ("low", "dora", "turned", "vector")}
    w = {n: tools.values(t).astype(np.float64) for n, t in base.items()}
    tools.write_folder(tmp_path / "base", base)
    parts, want = {}, dict(w)
    for name, turned in (("low", False), ("dora", False), ("turned", True)):
        a, b = draw(rank, rows if turned else columns), draw(columns if turned else rows, rank)
        product = 2.0 * b.astype(np.float64) @ a.astype(np.float64)
        want[f"{name}.weight"] = w[f"{name}.weight"] + (product.T if turned else product)
        parts |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    write_adapter(tmp_path / "low", {n: t for n, t in parts.items() if n.startswith("low")}, r=rank, lora_alpha=2 * rank)
    for name, axis in (("dora", 1), ("turned", 0)):
        x = want[f"{name}.weight"]
        m = np.abs(draw(x.shape[1 - axis])) + 1
        parts[f"{name}.lora_magnitude_vector"] = m
        want[f"{name}.weight"] = x * np.expand_dims(m / np.linalg.norm(x, axis=axis), axis)
    write_adapter(tmp_path / "dora", {n: t for n, t in parts.items() if not n.startswith("low")}, r=rank, lora_alpha=2 * rank,
                  use_dora=True)  # fmt: skip
    scale = draw(rows, 1)
    want["vector.weight"] = w["vector.weight"] * scale
    write_adapter(tmp_path / "ia3", {"vector.ia3_l": scale}, peft_type="IA3")
    model = "+".join(str(tmp_path / n) for n in ("base", "low", "dora", "ia3"))
    first = None
    for ranks in (0, 3):
        tools.merge({"merge_method": "passthrough", "models": [{"model": model}], "dtype": "float64"}, tmp_path / f"{ranks}.h5", ranks=ranks)
        got = tools.read_model(tmp_path / f"{ranks}.h5")
        first = first or got
        assert tools.same_tensors(got, first)
    for name, (_, x) in first.items():
        bound = 2e-14 if dtype == "F64" else 2.0**-23
        assert np.abs(x - want[name]).max() <= bound * np.abs(want[name]).max(), name
    # The list of one tensor goes over several parts, too.
    below = np.abs(w["low.weight"]) < 0.5
    lists = {"low.weight": ("F64", draw(below.sum()).astype(np.float64))}
    (tmp_path / "sparse").mkdir()
    tools.write_safetensors(tmp_path / "sparse/sara.safetensors", lists, {"threshold": "0.5"})
    w["low.weight"][below] = lists["low.weight"][1]
    tools.merge({"merge_method": "passthrough", "models": [{"model": f"{tmp_path}/base+{tmp_path}/sparse"}], "dtype": "float64"},
                tmp_path / "sparse.h5", ranks=3)  # fmt: skip
    got = tools.read_model(tmp_path / "sparse.h5")
    assert all(np.array_equal(x, w[n].astype(np.float64 if dtype == "F64" else np.float32)) for n, (_, x) in got.items())


# ---- in merges ---------------------------------------------------------------------------------------------------------


def two_adapters(folder, base=BYTES / "base"):
    """Adapters of bytes-llama (bfloat16), and the same models as folders in float32, where nothing is rounded but that."""
    models = []
    for i, name in enumerate(("french", "legal")):
        want = random_lora(folder / name, base, 10 + i, rank=2 + i, size=0.02, ends=("q_proj.weight", "down_proj.weight"))
        config = json.loads((base / "config.json").read_text())
        tools.write_folder(folder / f"{name}-full", {n: ("F32", x.astype(np.float32)) for n, x in want.items()}, config)
        models.append(f"{base}+{folder}/{name}")
    return models


METHODS = {
    "linear": {"weight": 0.7},
    "ties": {"weight": 0.5, "density": 0.4},
    "dare_ties": {"weight": 0.5, "density": 0.4},
    "tsv_m": {},
    "opcm": {},
    "nps": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_merges_like_the_whole_models(method, tmp_path):
    """The same bytes as from folders that hold base + adapter in float32, on 1 and 3 ranks."""
    adapted = two_adapters(tmp_path)
    config = lambda models: {
        "merge_method": method, "base_model": str(BYTES / "base"), "seed": 3, "out_dtype": "float32",
        "models": [{"model": str(m), "name": n, "parameters": METHODS[method]} for m, n in zip(models, ("french", "legal"))],
    }  # fmt: skip
    tools.merge(config([tmp_path / "french-full", tmp_path / "legal-full"]), tmp_path / "want.h5")
    want = tools.read_model(tmp_path / "want.h5")
    for ranks in (0, 3):
        tools.merge(config(adapted), tmp_path / "got.h5", "--force", ranks=ranks)
        got = tools.read_model(tmp_path / "got.h5")
        if method in ("linear", "ties", "dare_ties", "nps"):
            assert tools.same_tensors(got, want)
        for name, (_, x) in got.items():
            assert np.abs(x - want[name][1]).max() <= 2e-6 * np.abs(x).max(), name
    with h5py.File(tmp_path / "got.h5") as file:
        paths = [p.decode() if isinstance(p, bytes) else p for p in file["provenance/path"][()]]
        assert {f"{tmp_path}/french/adapter_config.json", f"{tmp_path}/french/adapter_model.safetensors"} <= set(paths)


def test_search_and_scores(tmp_path):
    """A search scores candidates that adapters are in, and nps-eval the model itself, as from whole folders."""
    base, full, names = DIGITS / "base", [], ("plain", "invert")
    with h5py.File(DIGITS / "calibration.h5") as source, h5py.File(tmp_path / "data.h5", "w") as few:
        for n in names:
            for kind in ("inputs", "labels"):
                few[f"{n}/{kind}"] = source[f"{n}/{kind}"][:24]
    for i, n in enumerate(names):
        want = random_lora(tmp_path / n, base, 20 + i, size=0.05)
        full.append(tools.write_folder(tmp_path / f"{n}-full", {t: ("F32", x.astype(np.float32)) for t, x in want.items()},
                                       json.loads((base / "config.json").read_text())))  # fmt: skip
    adapted = [f"{base}+{tmp_path}/{n}" for n in names]
    histories, scores = [], []
    for models in (adapted, full):
        config = {"merge_method": "nps", "base_model": str(base), "seed": 5, "nps": {"subspaces": 2},
                  "models": [{"model": str(m), "name": n} for m, n in zip(models, names)],
                  "search": {"stages": ["fuse"], "generations": 2, "population": 3},
                  "fitness": {"tasks": [{"name": n, "model": n, "data": str(tmp_path / "data.h5"), "head": str(DIGITS / n)} for n in names]},
                  }  # fmt: skip
        tools.merge(config, tmp_path / "out.h5", "--force", ranks=2)
        with h5py.File(tmp_path / "out.h5") as file:
            histories.append({n: file[f"search/fuse/{n}"][()] for n in ("genome", "correct", "nll_sum")})
        result = tools.run(tools.EVAL, models[1], "--data", tmp_path / "data.h5", "--head", DIGITS / "invert", "--json")
        assert result.code == 0, result
        scores.append(json.loads(result.out))
    assert all(np.array_equal(histories[0][n], histories[1][n]) for n in histories[0])
    assert scores[0] == scores[1]


def test_types_and_inspect(tmp_path):
    """A folder keeps the base's types; inspect sees float32; an adapter on top of an adapter is added to it."""
    base = BYTES / "base"
    once = random_lora(tmp_path / "a", base, 1, ends=("v_proj.weight",))
    got = converted(f"{base}+{tmp_path}/a", tmp_path / "out")
    stored = tools.read_model(base)
    for name, (dtype, x) in got.items():
        assert dtype == "BF16" and np.array_equal(x, tools.bf16_bits(once[name])), name
        assert name.endswith("v_proj.weight") != np.array_equal(x, stored[name][1])
    result = tools.run(tools.INSPECT, f"{base}+{tmp_path}/a", "--against", base, "--json", "--spectrum", 5, ranks=2)
    found = {t["name"]: t for t in json.loads(result.out)["tensors"]}
    for name, want in once.items():
        dtype = "F32" if name.endswith("v_proj.weight") else "BF16"
        assert found[name]["dtype"] == dtype
        change = np.linalg.norm(want.astype(np.float32 if dtype == "F32" else np.float64) - tools.values(stored[name]))
        assert abs(found[name]["difference"]["norm"] - change) <= 1e-6 * change
    twice = random_lora(tmp_path / "b", base, 2, ends=("v_proj.weight", "o_proj.weight"))
    tools.run(tools.CONVERT, f"{base}+{tmp_path}/a", tmp_path / "f32", "--force")
    got = converted(f"{base}+{tmp_path}/a+{tmp_path}/b", tmp_path / "both")
    for name, (_, x) in got.items():
        want = once[name] + twice[name] - tools.values(stored[name])
        assert np.abs(tools.from_bf16(x) - want).max() <= 2**-8 * np.abs(want).max()


# ---- adapters that are merged as adapters ------------------------------------------------------------------------------


def vectors(folder, seed, **config):
    random = np.random.default_rng(seed)
    shapes = {f"layer.{i}.{m}": s for i in range(2) for m, s in (("key", (16, 1)), ("value", (16, 1)), ("fc", (1, 24)))}
    tensors = {f"{n}.ia3_l": 1 + 0.1 * random.standard_normal(s) if seed else np.ones(s) for n, s in shapes.items()}
    write_adapter(folder, tensors, **{"peft_type": "IA3", "feedforward_modules": ["fc"], "target_modules": ["key", "value", "fc"], **config})
    return {f"base_model.model.{n}": np.float32(x) for n, x in tensors.items()}


def test_ia3_adapters_merge_as_adapters(tmp_path):
    """TIES on the vectors, against the start at 1; the output is an adapter with the same config."""
    thetas = [vectors(tmp_path / n, seed) for seed, n in enumerate(("start", "a", "b"))]
    config = {"merge_method": "ties", "base_model": str(tmp_path / "start"), "parameters": {"normalize": True},
              "models": [{"model": str(tmp_path / n), "parameters": {"weight": 1, "density": 0.5}} for n in "ab"]}  # fmt: skip
    tools.merge(config, tmp_path / "out", ranks=2)
    assert (tmp_path / "out/adapter_config.json").read_bytes() == (tmp_path / "a/adapter_config.json").read_bytes()
    got = tools.read_safetensors(tmp_path / "out/adapter_model.safetensors")
    start, *tuned = thetas
    masks = oracle.ties_masks(start, tuned, [0.5, 0.5], "tensor")
    for name, (dtype, x) in got.items():
        want = oracle.ties(start[name], [t[name] for t in tuned], masks[name], [1, 1])
        assert dtype == "F32" and np.abs(x - want).max() < 1e-6, name
    assert "library_name: peft" in (tmp_path / "out/README.md").read_text()
    inputs = {i["path"]: i["sha256"] for i in json.loads((tmp_path / "out/provenance.json").read_text())["inputs"]}
    files = ("adapter_config.json", "adapter_model.safetensors")
    assert inputs.keys() == {str(tmp_path / n / f) for n in ("start", "a", "b") for f in files}
    small = tmp_path / "a/adapter_config.json"  # one block: the hash of its hash
    assert inputs[str(small)] == hashlib.sha256(hashlib.sha256(small.read_bytes()).digest()).hexdigest()
    result = tools.merge(config, tmp_path / "out.h5", code=2)
    assert "an adapter, a folder" in result.err
    for program, arguments in ((tools.CONVERT, [tmp_path / "o"]), (tools.EVAL, ["--data", DIGITS / "calibration.h5", "--head", DIGITS / "plain"])):
        result = tools.run(program, tmp_path / "a", *arguments)
        assert result.code == 3 and "is a PEFT adapter by itself, expected BASE+" in result.err
    vectors(tmp_path / "b", 2, fan_in_fan_out=True)
    result = tools.merge(config, tmp_path / "out", "--force", code=3)
    assert "b: adapter_config.json: fan_in_fan_out is not the same as in base" in result.err
    config["models"][1]["model"] = str(DIGITS / "base")
    assert f"{tmp_path}/a: is a PEFT adapter, but not all models are" in tools.merge(config, tmp_path / "out", "--force", code=3).err


# ---- what does not fit -------------------------------------------------------------------------------------------------

A, B = np.ones((2, 6)), np.ones((4, 2))
PAIR = {"fc.lora_A.weight": A, "fc.lora_B.weight": B}
PLAIN = {"r": 2, "lora_alpha": 2}

MALFORMED = {
    "another method": (PAIR, {**PLAIN, "peft_type": "LOHA"}, "peft_type: expected LORA or IA3, found 'LOHA', which is not built"),
    "no method": (PAIR, {**PLAIN, "peft_type": None}, "peft_type is missing"),
    "an option": (PAIR, {**PLAIN, "layer_replication": [[0, 4], [2, 5]], "use_qalora": True}, "option 'layer_replication' is not built"),
    "an unknown option": (PAIR, {**PLAIN, "use_xlora": True}, "option 'use_xlora' is not built"),
    "a changed base": (PAIR, {**PLAIN, "init_lora_weights": "pissa"}, "'pissa' changes the base before training"),
    "r a text": (PAIR, {**PLAIN, "r": "two"}, "r: expected a number above 0"),
    "alpha negative": (PAIR, {**PLAIN, "lora_alpha": -1}, "lora_alpha: expected a number above 0"),
    "flag a number": (PAIR, {**PLAIN, "use_rslora": 1}, "use_rslora: expected true or false"),
    "pattern a list": (PAIR, {**PLAIN, "rank_pattern": ["fc"]}, "rank_pattern: expected an object"),
    "pattern of texts": (PAIR, {**PLAIN, "alpha_pattern": {"fc": "x"}}, "alpha_pattern: fc: expected a number above 0"),
    "pattern no expression": (PAIR, {**PLAIN, "rank_pattern": {"(fc": 2}}, "the pattern '(fc' is no regular expression"),
    "pattern of Python's": (PAIR, {**PLAIN, "rank_pattern": {"f(?=c).": 2}}, "is no regular expression that is known here"),
    "rank": (PAIR, {**PLAIN, "r": 3}, "fc.lora_A.weight has rank 2, expected 3 by adapter_config.json"),
    "no B": ({"fc.lora_A.weight": A}, PLAIN, "fc.weight of the base has one of lora_A and lora_B but not the other"),
    "A too wide": ({**PAIR, "fc.lora_A.weight": np.ones((2, 7))}, PLAIN, "fc.lora_A.weight is [2, 7], which does not fit [4, 6]"),
    "B a vector": ({**PAIR, "fc.lora_B.weight": np.ones(8)}, PLAIN, "fc.lora_B.weight is [8]"),
    "no module": ({**PAIR, "gone.lora_A.weight": A, "gone.lora_B.weight": B}, PLAIN, "gone.lora_A.weight fits no tensor of the base"),
    "no tensor": ({**PAIR, "fc.lora_C.weight": A}, PLAIN, "fc.lora_C.weight fits no tensor of the base"),
    "integers": ({**PAIR, "fc.lora_A.weight": ("I32", np.ones((2, 6), np.int32))}, PLAIN, "fc.lora_A.weight is I32"),
    "no magnitude": (PAIR, {**PLAIN, "use_dora": True}, "use_dora is true, but fc.weight has no lora_magnitude_vector"),
    "a magnitude": ({**PAIR, "fc.lora_magnitude_vector": np.ones(4)}, PLAIN, "use_dora is false, but fc.weight has a"),
    "magnitude too long": ({**PAIR, "fc.lora_magnitude_vector": np.ones(5)}, {**PLAIN, "use_dora": True}, "magnitude_vector is [5]"),
    "dora and sine": (PAIR, {**PLAIN, "use_dora": True, "sine_omega": 2}, "sine_omega together with use_dora is not built"),
    "vector of LoRA": ({"fc.ia3_l": np.ones((4, 1))}, PLAIN, "fc.ia3_l: peft_type is LORA"),
    "vector too long": ({"fc.ia3_l": np.ones((5, 1))}, {"peft_type": "IA3"}, "fc.ia3_l is [5, 1], which does not fit [4, 6]"),
    "integers of the base": ({"steps.lora_A.weight": A, "steps.lora_B.weight": B}, PLAIN, "steps.weight of the base is I64"),
}  # fmt: skip


def test_malformed_adapters(tmp_path):
    """All are reported in one run, each with its folder."""
    base = {"fc.weight": ("F32", np.ones((4, 6), np.float32)), "steps.weight": ("I64", np.ones((4, 6), np.int64))}
    tools.write_folder(tmp_path / "base", base)
    folders = {case: write_adapter(tmp_path / f"a{i}", t, **c) for i, (case, (t, c, _)) in enumerate(MALFORMED.items())}
    config = {"merge_method": "linear", "models": [{"model": f"{tmp_path}/base+{f}"} for f in folders.values()], "parameters": {"weight": 1}}
    result = tools.merge(config, tmp_path / "out", "--check", code=3)
    for case, (_, _, text) in MALFORMED.items():
        assert any(f"{folders[case]}: " in line and text in line for line in result.err.splitlines()), (case, result.err)


def test_nan_in_an_adapter(tmp_path):
    tools.write_folder(tmp_path / "base", {"fc.weight": ("F32", np.ones((4, 6), np.float32))})
    write_adapter(tmp_path / "a", {**PAIR, "fc.lora_A.weight": np.full((2, 6), np.nan)}, **PLAIN)
    for program, model in ((tools.CONVERT, f"{tmp_path}/base+{tmp_path}/a"), (tools.MERGE, tmp_path / "c.yaml")):
        tools.write_config(tmp_path / "c.yaml", {"merge_method": "passthrough", "models": [{"model": "base+a"}]})
        result = tools.run(program, model, tmp_path / "out", ranks=2)
        assert result.code == 3 and "tensor fc.weight holds NaN" in result.err, result
        assert not (tmp_path / "out").exists()


def test_what_is_no_adapter(tmp_path):
    tools.write_folder(tmp_path / "base", {"fc.weight": ("F32", np.ones((4, 6), np.float32))})
    fails = lambda model: tools.run(tools.CONVERT, model, "out", cwd=tmp_path)
    assert "gone: adapter not found, tried gone" in fails("base+gone").err
    write_adapter(tmp_path / "a", PAIR, **PLAIN)
    assert "gone: model not found, tried gone" in fails("gone+a").err
    assert "base: is no adapter: expected adapter_config.json" in fails("base+base").err
    (tmp_path / "sparse").mkdir()
    tools.write_safetensors(tmp_path / "sparse/sara.safetensors", {"fc.weight": ("F32", np.ones(2, np.float32))})
    assert "its metadata have no 'threshold'" in fails("base+sparse").err
    tools.write_safetensors(tmp_path / "sparse/sara.safetensors", {"x": ("F32", np.ones(2, np.float32))}, {"threshold": "1"})
    assert "tensor x is not in the base" in fails("base+sparse").err
    (tmp_path / "a/adapter_model.safetensors").rename(tmp_path / "a/adapter_model.bin")
    assert "adapter_model.bin is not read" in fails("base+a").err
    write_adapter(tmp_path / "a", PAIR, **PLAIN)
    shutil.copytree(tmp_path / "base", tmp_path / "my+base")  # a plus in a name of its own
    for model in ("my+base", "my+base+a"):
        result = tools.run(tools.CONVERT, model, model + ".h5", cwd=tmp_path)
        assert result.code == 0, result
    assert np.array_equal(tools.read_model(tmp_path / "my+base+a.h5")["fc.weight"][1], 1 + B @ A)
    result = tools.run(tools.CONVERT, "base+a", "a", "--force", cwd=tmp_path)
    assert result.code == 2 and "the output would replace the input" in result.err
