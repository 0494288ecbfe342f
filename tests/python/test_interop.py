"""What others read of our output, and what we read of others' files."""

import hashlib
import json

import h5py
import numpy as np
import oracle
import pytest
import safetensors.numpy
import safetensors.torch
import tools
import torch
import transformers
import yaml

BLOCK = 16 << 20


def task_arithmetic(family, tasks=None, lam=0.4):
    """float32 tensors of base + λ Στ by the oracle."""
    read = lambda model: {n: tools.values(t) for n, t in tools.read_model(tools.MODELS / family / model).items()}
    base, models = read("base"), [read(task) for task in tasks or tools.TASKS[family]]
    weights = [1.0] * len(models)
    return {
        n: oracle.task_arithmetic(b, [m[n] for m in models], weights, lam).astype(np.float32) for n, b in base.items()
    }


def config_of(family, lam=0.4, **more):
    return tools.recipe(family, "task_arithmetic", {"lambda": lam}, {"weight": 1}, **more)


# ---- HDF5 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_h5py_reads_every_tensor_by_name(dtype, tmp_path):
    expected = task_arithmetic("bytes-llama")
    tools.merge(config_of("bytes-llama", out_dtype=dtype), tmp_path / "out.h5", ranks=2)
    with h5py.File(tmp_path / "out.h5") as file:
        assert sorted(file["tensors"]) == sorted(expected)
        for name, value in expected.items():
            dataset = file["tensors"][name]
            assert dataset.chunks is None and dataset.shape == value.shape
            found = dataset[()].astype(np.float64)
            tolerance = {"float32": 1e-7, "float64": 1e-7, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
            assert np.all(np.abs(found - value) <= tolerance * np.abs(value) + 1e-7), name
            if dtype == "bfloat16":
                bits = tools.bf16_bits(value.astype(np.float64))
                assert dataset.id.get_type().get_size() == 2
                # the same numbers as the 16 bits, one rounding of float32 away from the float64 result
                assert np.mean(tools.from_bf16(bits) == found) > 0.999, name


def content_hash(path):
    raw = path.read_bytes()
    digests = b"".join(hashlib.sha256(raw[i : i + BLOCK]).digest() for i in range(0, len(raw), BLOCK))
    return hashlib.sha256(digests).hexdigest()


def text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize("ranks", [1, 3])
def test_attributes_and_provenance(ranks, tmp_path):
    out = tmp_path / "out.h5"
    tools.merge(config_of("bytes-llama"), out, ranks=ranks)
    with h5py.File(out) as file:
        attributes = {key: file.attrs[key] for key in file.attrs}
        assert text(attributes["format"]) == "nps-merged"
        assert attributes["format_version"] == 1
        assert text(attributes["created_by"]).startswith("nps-merge ")
        recipe = text(attributes["recipe"])
        assert text(attributes["recipe_sha256"]) == hashlib.sha256(recipe.encode()).hexdigest()
        assert yaml.safe_load(recipe)["merge_method"] == "task_arithmetic"
        base = json.loads((tools.MODELS / "bytes-llama/base/config.json").read_text())
        config = json.loads(text(attributes["config_json"]))
        assert config.pop("torch_dtype") == "float32" and base.pop("torch_dtype") == "bfloat16"
        assert config == base
        paths = [text(p) for p in file["provenance/path"]]
        sizes, hashes = file["provenance/size"][()], [text(h) for h in file["provenance/sha256"]]
    inputs = [tools.MODELS / "bytes-llama" / m for m in ["base", *tools.TASKS["bytes-llama"]]]
    files = sorted(str(f) for folder in inputs for f in folder.glob("*.safetensors"))
    assert sorted(paths) == files
    for path, size, digest in zip(paths, sizes, hashes):
        path = tools.pathlib.Path(path)
        assert path.stat().st_size == size and content_hash(path) == digest, path


def test_provenance_of_files_beyond_one_block(tmp_path):
    """Two and a half blocks of 16 MiB, shared among ranks and read in slabs."""
    random = np.random.default_rng(5)
    for model in ("a", "b"):
        tensors = {"w": ("F32", random.standard_normal((2500, 4001)).astype(np.float32)),
                   "v": ("F32", random.standard_normal(17).astype(np.float32))}  # fmt: skip
        tools.write_folder(tmp_path / model, tensors)
    config = {"merge_method": "ties", "base_model": "a", "models": [{"model": "b"}],
              "parameters": {"weight": 1, "density": 0.5}}  # fmt: skip
    tools.merge(config, tmp_path / "out", ranks=3)
    inputs = json.loads((tmp_path / "out/provenance.json").read_text())["inputs"]
    found = {entry["path"]: (entry["size"], entry["sha256"]) for entry in inputs}
    files = [tmp_path / m / "model.safetensors" for m in ("a", "b")]
    assert files[0].stat().st_size > 2 * BLOCK
    assert found == {str(f): (f.stat().st_size, content_hash(f)) for f in files}


def test_the_recipe_in_the_file_repeats_the_merge(tmp_path):
    config = tools.recipe("bytes-llama", "dare_ties", {"density": 0.5}, {"weight": 0.3}, seed=9)
    tools.merge(config, tmp_path / "out.h5", "--set", "models.0.parameters.weight=0.9")
    with h5py.File(tmp_path / "out.h5") as file:
        (tmp_path / "again.yaml").write_text(text(file.attrs["recipe"]))
    tools.merge(tmp_path / "again.yaml", tmp_path / "again.h5")
    assert tools.same_tensors(tools.read_model(tmp_path / "out.h5"), tools.read_model(tmp_path / "again.h5"))
    with h5py.File(tmp_path / "out.h5") as a, h5py.File(tmp_path / "again.h5") as b:
        assert a.attrs["recipe_sha256"] == b.attrs["recipe_sha256"]


# ---- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folder_loads_in_safetensors(dtype, tmp_path):
    expected = task_arithmetic("bytes-llama")
    out = tmp_path / "out"
    tools.merge(config_of("bytes-llama", out_dtype=dtype, output={"shard_size": "500KB"}), out, ranks=2)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    loaded, total = {}, 0
    for file in sorted(out.glob("*.safetensors")):
        tensors = safetensors.torch.load_file(file)
        assert all(index["weight_map"][name] == file.name for name in tensors)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
        loaded.update(tensors)
    assert index["metadata"]["total_size"] == total and len(set(index["weight_map"].values())) > 2
    assert loaded.keys() == expected.keys() == index["weight_map"].keys()
    for name, value in expected.items():
        assert loaded[name].dtype == getattr(torch, dtype) and list(loaded[name].shape) == list(value.shape)
        assert np.allclose(
            loaded[name].float().numpy(), value, rtol=2.0**-8 if dtype == "bfloat16" else 1e-6, atol=1e-7
        )


def test_single_file_folder_and_its_small_files(tmp_path):
    out = tmp_path / "out"
    result = tools.merge(config_of("bytes-llama"), out)
    assert sorted(f.name for f in out.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "nps-merge.yaml", "provenance.json",
    ]  # fmt: skip
    assert safetensors.numpy.load_file(out / "model.safetensors").keys() == tools.read_model(out).keys()
    card = (out / "README.md").read_text()
    assert card.startswith("---\n") and "task_arithmetic" in card and "french" in card
    assert str(out) in result.out and "french" in result.out


def test_tokenizer_files_travel(tmp_path):
    base = tools.copy_folder(tools.MODELS / "bytes-llama/base", tmp_path / "base")
    files = {
        "tokenizer.json": b'{"a": "\xc3\xa9"}',
        "tokenizer_config.json": b"{}",
        "vocab.txt": b"a\nb\n",
        "merges.txt": b"",
    }
    for name, data in files.items():
        (base / name).write_bytes(data)
    (base / "notes.txt").write_text("not part of the model")
    config = {**config_of("bytes-llama"), "base_model": "base"}
    tools.merge(config, tmp_path / "out", ranks=2)
    tools.merge(config, tmp_path / "out.h5", ranks=2)
    again = {"merge_method": "passthrough", "models": [{"model": "out.h5"}]}
    tools.merge(again, tmp_path / "back")
    for folder in (tmp_path / "out", tmp_path / "back"):
        assert {n: (folder / n).read_bytes() for n in files} == files
        assert not (folder / "notes.txt").exists()
    with h5py.File(tmp_path / "out.h5") as file:
        assert {n: d[()].tobytes() for n, d in file["tokenizer"].items()} == files


# ---- transformers ------------------------------------------------------------------------------------------------------


def logits(model, **inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits.float()


def text_batch():
    with h5py.File(tools.MODELS / "bytes-llama/test.h5") as file:
        return torch.from_numpy(file["c"]["input_ids"][:8].astype(np.int64))


def rope(x, theta):
    """x: [batch, heads, positions, size], rotated in halves."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * theta ** (
        -torch.arange(half, dtype=torch.float64) / half)  # fmt: skip
    cos, sin = angle.cos().float(), angle.sin().float()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def llama_forward(w, c, ids):
    """A Llama's logits from its tensors by name, written out."""
    w = {n: torch.from_numpy(np.array(x)) for n, x in w.items()}
    norm = lambda x, g: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + c["rms_norm_eps"]) * g
    x = w["model.embed_tokens.weight"][ids]
    batch, length, _ = x.shape
    mask = torch.full((length, length), -torch.inf).triu(1)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"])
        heads = lambda name, n: (h @ w[f"{p}self_attn.{name}.weight"].T).view(batch, length, n, -1).transpose(1, 2)
        q = rope(heads("q_proj", c["num_attention_heads"]), c["rope_theta"])
        k = rope(heads("k_proj", c["num_key_value_heads"]), c["rope_theta"])
        v = heads("v_proj", c["num_key_value_heads"])
        group = c["num_attention_heads"] // c["num_key_value_heads"]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        a = torch.softmax(q @ k.transpose(-1, -2) / c["head_dim"] ** 0.5 + mask, -1) @ v
        x = x + a.transpose(1, 2).reshape(batch, length, -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(h @ w[p + "mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


@pytest.mark.parametrize("shard_size", ["5GB", "1MB"])
def test_bytes_llama_runs_in_transformers(shard_size, tmp_path):
    tools.merge(config_of("bytes-llama", output={"shard_size": shard_size}), tmp_path / "out", ranks=2)
    model, info = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True)  # fmt: skip
    assert not info["missing_keys"] and not info["unexpected_keys"]
    config = json.loads((tmp_path / "out/config.json").read_text())
    expected = llama_forward(task_arithmetic("bytes-llama"), config, text_batch())
    assert (logits(model, input_ids=text_batch()) - expected).abs().max() < 1e-4


def vit_forward(w, c, x):
    """The logits of a vision transformer from its tensors by name, written out."""
    w = {n: torch.from_numpy(np.array(t)) for n, t in w.items()}
    hidden = c["hidden_size"]
    linear = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]
    norm = lambda x, name: torch.nn.functional.layer_norm(
        x, (hidden,), w[name + ".weight"], w[name + ".bias"], c["layer_norm_eps"])  # fmt: skip
    patches = torch.nn.functional.unfold(x, c["patch_size"], stride=c["patch_size"]).transpose(1, 2)
    e = "vit.embeddings."
    x = (
        patches @ w[e + "patch_embeddings.projection.weight"].reshape(hidden, -1).T
        + w[e + "patch_embeddings.projection.bias"]
    )
    x = torch.cat([w[e + "cls_token"].expand(len(x), -1, -1), x], 1) + w[e + "position_embeddings"]
    batch, length, _ = x.shape
    for i in range(c["num_hidden_layers"]):
        p = f"vit.encoder.layer.{i}."
        h = norm(x, p + "layernorm_before")
        q, k, v = (linear(h, f"{p}attention.attention.{part}").view(batch, length, c["num_attention_heads"], -1)
                   .transpose(1, 2) for part in ("query", "key", "value"))  # fmt: skip
        a = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
        x = x + linear(a.transpose(1, 2).reshape(batch, length, hidden), p + "attention.output.dense")
        h = linear(norm(x, p + "layernorm_after"), p + "intermediate.dense")
        x = x + linear(torch.nn.functional.gelu(h), p + "output.dense")
    return linear(norm(x, "vit.layernorm")[:, 0], "classifier")


@pytest.mark.parametrize("head", ["plain", "parity"])
def test_digits_vit_with_a_head_runs_in_transformers(head, tmp_path):
    tools.merge(config_of("digits-vit", 0.3, output={"head": head}), tmp_path / "out", ranks=2)
    model, info = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True)  # fmt: skip
    assert not info["missing_keys"] and not info["unexpected_keys"]
    own = json.loads((tools.MODELS / "digits-vit" / head / "config.json").read_text())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert {k: config.get(k) for k in ("id2label", "label2id", "architectures")} == {
        k: own.get(k) for k in ("id2label", "label2id", "architectures")}  # fmt: skip
    assert model.config.num_labels == len(own["id2label"])
    with h5py.File(tools.MODELS / "digits-vit/test.h5") as file:
        x = torch.from_numpy(file[head]["inputs"][:32])
    tensors = task_arithmetic("digits-vit", lam=0.3)
    heads = tools.read_model(tools.MODELS / "digits-vit" / head)
    tensors |= {n: heads[n][1] for n in ("classifier.weight", "classifier.bias")}
    difference = logits(model, pixel_values=x, interpolate_pos_encoding=False) - vit_forward(tensors, config, x)
    assert difference.abs().max() < 1e-4


# ---- families of transformers ------------------------------------------------------------------------------------------

SMALL_FAMILIES = {
    "llama": ("LlamaForCausalLM", dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                                       num_key_value_heads=1, vocab_size=32, tie_word_embeddings=True)),
    "vit": ("ViTForImageClassification", dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                              num_attention_heads=2, image_size=8, patch_size=4, num_labels=3)),
    "bert": ("BertForMaskedLM", dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                                     vocab_size=32)),
    "gemma2": ("Gemma2ForCausalLM", dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                                         num_key_value_heads=1, head_dim=8, vocab_size=32)),
    "t5": ("T5ForConditionalGeneration", dict(d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2, vocab_size=32)),
}  # fmt: skip


def small_inputs(family):
    ids = torch.arange(12).reshape(2, 6) % 32
    if family == "vit":
        return dict(pixel_values=torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8))
    return dict(input_ids=ids, decoder_input_ids=ids) if family == "t5" else dict(input_ids=ids)


@pytest.mark.parametrize("family", SMALL_FAMILIES)
def test_families_load_with_equal_logits(family, tmp_path):
    """What transformers saved, merged with itself, as a folder and after nps-convert: the same network. With slices, where the family has one stack of layers,
    of which the second is left out: as transformers without that layer."""
    name, sizes = SMALL_FAMILIES[family]
    cls = getattr(transformers, name)
    torch.manual_seed(3)
    model = cls(cls.config_class(**sizes))
    model.save_pretrained(tmp_path / "model")
    config = {"merge_method": "linear", "models": [{"model": "model"}, {"model": "model"}],
              "parameters": {"weight": 0.5}}  # fmt: skip
    tools.merge(config, tmp_path / "out", ranks=2)
    tools.merge(config, tmp_path / "out.h5")
    tools.run(tools.CONVERT, tmp_path / "out.h5", tmp_path / "converted")
    expected = logits(model, **small_inputs(family))
    for folder in ("out", "converted"):
        merged, info = cls.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(logits(merged, **small_inputs(family)), expected)
    cut = {"merge_method": "passthrough", "slices": [{"sources": [{"model": "model", "layer_range": [0, 1]}]}]}
    if family == "t5":
        assert "several stacks" in tools.merge(cut, tmp_path / "cut", code=3).err
        return
    tools.merge(cut, tmp_path / "cut")
    merged, info = cls.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and merged.config.num_hidden_layers == 1
    shorter = cls(cls.config_class(**{**sizes, "num_hidden_layers": 1}))
    kept = {n: t for n, t in model.state_dict().items() if ".1." not in n}
    shorter.load_state_dict(kept)
    assert torch.equal(logits(merged, **small_inputs(family)), logits(shorter, **small_inputs(family)))


# ---- heads, buffers ----------------------------------------------------------------------------------------------------


def test_heads_are_copied_only_when_asked(tmp_path):
    heads = {t: tools.read_model(tools.MODELS / "digits-vit" / t) for t in ("plain", "rot90")}
    several = tools.recipe("digits-vit", "linear", None, {"weight": 1}, names=["plain", "rot90"])
    tools.merge(several, tmp_path / "none.h5")
    assert "classifier.weight" not in tools.read_model(tmp_path / "none.h5")
    tools.merge({**several, "output": {"head": "rot90"}, "out_dtype": "bfloat16"}, tmp_path / "rot90.h5", ranks=2)
    merged = tools.read_model(tmp_path / "rot90.h5")
    assert merged["classifier.weight"][0] == "F32"  # a head is copied as it is stored
    assert np.array_equal(merged["classifier.weight"][1], heads["rot90"]["classifier.weight"][1])
    single = tools.recipe("digits-vit", "task_arithmetic", None, {"weight": 1}, names=["plain"])
    tools.merge(single, tmp_path / "plain.h5")
    merged = tools.read_model(tmp_path / "plain.h5")
    assert np.array_equal(merged["classifier.bias"][1], heads["plain"]["classifier.bias"][1])
    assert "head: classifier.weight" in tools.merge(single, tmp_path / "x.h5", "--plan").out


def small_models(folder, buffers=({}, {}, {}), dtype="F32"):
    """base, a, b with one float tensor and each its buffers; also a value for every entry."""
    random = np.random.default_rng(1)
    weights = []
    for name, extra in zip(("base", "a", "b"), buffers):
        w = random.standard_normal((20, 30))
        bits = tools.narrow(w, dtype)
        weights.append(tools.values((dtype, bits)))
        tools.write_folder(folder / name, {"w": (dtype, bits), **extra})
    return weights


SMALL = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "a"}, {"model": "b"}],
         "parameters": {"weight": 0.5}}  # fmt: skip


@pytest.mark.parametrize("out", ["out.h5", "out"])
def test_integer_buffers_are_copied(out, tmp_path):
    buffers = {"ids": ("I64", np.arange(7).reshape(1, 7)), "mask": ("BOOL", np.array([True, False, True])),
               "u": ("U8", np.arange(5, dtype=np.uint8)), "i": ("I16", np.array(-3, np.int16)),
               "none": ("I32", np.zeros((0, 4), np.int32))}  # fmt: skip
    small_models(tmp_path, (buffers,) * 3)
    tools.merge({**SMALL, "out_dtype": "bfloat16"}, tmp_path / out, ranks=2)
    merged = tools.read_model(tmp_path / out)
    assert merged.pop("w")[0] == "BF16"
    assert tools.same_tensors(merged, buffers)


@pytest.mark.parametrize("ranks", [0, 2])
def test_integer_buffers_that_differ_are_an_error(ranks, tmp_path):
    other = np.arange(7)
    other[5] = 0
    small_models(tmp_path, ({"ids": ("I64", np.arange(7))},) * 2 + ({"ids": ("I64", other)},))
    result = tools.merge(SMALL, tmp_path / "out.h5", ranks=ranks, code=3)
    assert "tensor ids" in result.err and "5" in result.err and result.err.count("error:") == 1, result
    assert not list(tmp_path.glob("*out.h5")) and not list(tmp_path.glob(".out*"))


def test_without_dtype_every_tensor_keeps_the_base_type(tmp_path):
    random = np.random.default_rng(1)
    types = {"a.f64": "F64", "b.f32": "F32", "c.f16": "F16", "d.bf16": "BF16"}
    for model in ("base", "a", "b"):
        tools.write_folder(
            tmp_path / model, {n: (t, tools.narrow(random.standard_normal(50), t)) for n, t in types.items()}
        )
    tools.merge(SMALL, tmp_path / "out.h5")
    tools.merge(SMALL, tmp_path / "out")
    merged = tools.read_model(tmp_path / "out.h5")
    assert {n: t for n, (t, _) in merged.items()} == types
    assert tools.same_tensors(merged, tools.read_model(tmp_path / "out"))
    models = [tools.read_model(tmp_path / m) for m in ("base", "a", "b")]
    for name, dtype in types.items():
        b, x, y = (tools.values(m[name]) for m in models)
        expected = tools.narrow(oracle.task_arithmetic(b, [x, y], [0.5, 0.5]), dtype)
        assert expected.tobytes() == merged[name][1].tobytes(), name


# ---- inputs ------------------------------------------------------------------------------------------------------------


def test_merged_files_are_inputs_again(tmp_path):
    """Base and models as HDF5 give the same as the folders they came from."""
    for model in ["base", *tools.TASKS["bytes-llama"]]:
        take_over = {"merge_method": "passthrough", "models": [{"model": str(tools.MODELS / "bytes-llama" / model)}]}
        tools.merge(take_over, tmp_path / f"{model}.h5", ranks=2)
        assert tools.same_tensors(tools.read_model(tmp_path / f"{model}.h5"),
                                  tools.read_model(tools.MODELS / "bytes-llama" / model))  # fmt: skip
    config = tools.recipe("bytes-llama", "ties", {"density": 0.4}, {"weight": 1})
    tools.merge(config, tmp_path / "from-folders.h5")
    files = {**config, "base_model": "base.h5"}
    files["models"] = [{"model": f"{m}.h5", "parameters": {"weight": 1}} for m in tools.TASKS["bytes-llama"]]
    tools.merge(files, tmp_path / "from-files.h5", ranks=3)
    assert tools.same_tensors(
        tools.read_model(tmp_path / "from-folders.h5"), tools.read_model(tmp_path / "from-files.h5")
    )
    with h5py.File(tmp_path / "from-files.h5") as file:
        assert json.loads(text(file.attrs["config_json"]))["model_type"] == "llama"


def test_single_safetensors_files_are_inputs(tmp_path):
    config = tools.recipe("digits-vit", "linear", None, {"weight": 1}, names=["plain", "blur"])
    tools.merge(config, tmp_path / "folders.h5")
    single = {**config, "base_model": str(tools.MODELS / "digits-vit/base/model.safetensors")}
    single["models"] = [{**m, "model": m["model"] + "/model.safetensors"} for m in config["models"]]
    tools.merge(single, tmp_path / "files.h5")
    assert tools.same_tensors(tools.read_model(tmp_path / "folders.h5"), tools.read_model(tmp_path / "files.h5"))


@pytest.mark.parametrize("dtype", ["F16", "F64", "BF16", "F32"])
@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_input_types(method, dtype, tmp_path):
    base, a, b = small_models(tmp_path, dtype=dtype)
    tools.merge({**SMALL, "merge_method": method, "dtype": "float32"}, tmp_path / "out.h5")
    expected = (
        oracle.linear([a, b], [0.5, 0.5]) if method == "linear" else oracle.task_arithmetic(base, [a, b], [0.5, 0.5])
    )
    assert tools.read_model(tmp_path / "out.h5")["w"][1].tobytes() == expected.astype(np.float32).tobytes()


def make_cache(
    cache, source, repository="org/name", revision="main", digest="0123456789abcdef0123456789abcdef01234567"
):
    """A model in the layout of the Hugging Face cache: blobs, and snapshots of links to them."""
    root = cache / ("models--" + repository.replace("/", "--"))
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "blobs").mkdir(exist_ok=True)
    (root / "refs" / revision).write_text(digest)
    snapshot = root / "snapshots" / digest
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")


@pytest.mark.parametrize("variable, below", [("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"),
                                             ("XDG_CACHE_HOME", "huggingface/hub")])  # fmt: skip
def test_models_in_the_hugging_face_cache(variable, below, tmp_path):
    cache = tmp_path / "cache" / below
    make_cache(cache, tools.MODELS / "bytes-llama/base", "org/base")
    make_cache(cache, tools.MODELS / "bytes-llama/french", "org/tuned")
    make_cache(cache, tools.MODELS / "bytes-llama/german", "org/tuned", "v2", "f" * 40)
    models = [{"model": "org/tuned"}, {"model": "org/tuned@v2"}, {"model": "org/tuned@" + "f" * 40}]
    config = {"merge_method": "task_arithmetic", "base_model": "org/base", "models": models,
              "parameters": {"weight": 0.2}, "dtype": "float32"}  # fmt: skip
    unset = dict.fromkeys(["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"], "")
    env = {**unset, "HOME": str(tmp_path), variable: "~/cache"}
    tools.merge(config, tmp_path / "cache.h5", env=env)
    direct = tools.recipe("bytes-llama", "task_arithmetic", None, {"weight": 0.2}, names=["french", "german", "german"])
    tools.merge(direct, tmp_path / "direct.h5")
    assert tools.same_tensors(tools.read_model(tmp_path / "cache.h5"), tools.read_model(tmp_path / "direct.h5"))


def test_the_base_among_the_models(tmp_path):
    """No task vector; in linear it counts where it is listed."""
    config = tools.recipe("bytes-llama", "task_arithmetic", None, {"weight": 0.2}, names=["base", "c"])
    result = tools.merge(config, tmp_path / "a.h5")
    assert "base" in result.err and "left out" in result.err
    tools.merge(tools.recipe("bytes-llama", "task_arithmetic", None, {"weight": 0.2}, names=["c"]), tmp_path / "b.h5")
    assert tools.same_tensors(tools.read_model(tmp_path / "a.h5"), tools.read_model(tmp_path / "b.h5"))
    tools.merge(tools.recipe("bytes-llama", "linear", None, {"weight": 1}, names=["base", "c"]), tmp_path / "l.h5")
    read = lambda m: tools.values(tools.read_model(tools.MODELS / "bytes-llama" / m)["lm_head.weight"])
    expected = oracle.linear([read("base"), read("c")], [1, 1]).astype(np.float32)
    assert np.array_equal(tools.read_model(tmp_path / "l.h5")["lm_head.weight"][1], expected)
