"""Adapters that nps-convert extracts load in the peft library and give base + the best approximation of their rank."""

import json

import numpy as np
import pytest
import tools


def truncated(tau, rank):
    """The best approximation of a rank, in float64."""
    u, s, vt = np.linalg.svd(tau.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def least_rank(tau, energy):
    s = np.linalg.svd(tau.astype(np.float64), compute_uv=False) ** 2
    return int(np.argmax(np.cumsum(s) >= energy * s.sum() * (1 - 1e-12))) + 1 if s.any() else 1


def extract(tuned, base, out, *options, ranks=2, code=0):
    result = tools.run(tools.CONVERT, tuned, out, "--base", base, *options, ranks=ranks)
    assert result.code == code, result
    return result


def save_pair(model, folder, seed):
    """A model as base, and moved at random: fine-tuned, one of its matrices not at all."""
    import torch

    model.save_pretrained(folder / "base")
    torch.manual_seed(seed)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += 0.02 * torch.randn_like(p) * (i != 3)
    model.save_pretrained(folder / "tuned")


def build_llama():
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=32, tie_word_embeddings=False)  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def build_gpt2():
    import transformers

    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16))


def merged_by_peft(base, adapter):
    """{name: float32} of base + adapter, by the peft library; names as the model's class has them."""
    import peft

    model = peft.PeftModel.from_pretrained(base, adapter)
    return {n: t.detach().float().numpy() for n, t in model.merge_and_unload().state_dict().items()}


def assert_is_base_plus(merged, base, tuned, linear, rank):
    """Linear layers moved by the truncated difference within rounding, all else stayed. @param rank  of each by name"""
    assert linear
    for name, b in base.items():
        if name not in linear:
            assert np.array_equal(merged[name], b), name
            continue
        want = b + truncated(tuned[name] - b, rank(name))
        assert np.abs(merged[name] - want).max() <= 4e-7 * np.abs(b).max(), name


def state(model):
    return {n: t.detach().float().numpy() for n, t in model.state_dict().items()}


@pytest.mark.parametrize("build, seed", [(build_llama, 1), (build_gpt2, 2)])
@pytest.mark.parametrize("option", [("--lora-rank", 3), ("--lora-energy", 0.6)])
def test_peft_loads_it(build, seed, option, tmp_path):
    import transformers

    save_pair(build(), tmp_path, seed)
    extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "adapter", *option)
    load = lambda name: transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="float32")
    base, tuned = state(load("base")), state(load("tuned"))
    tables = ("embed_tokens.weight", "wte.weight", "wpe.weight")
    linear = [n for n, t in base.items() if t.ndim == 2 and not n.endswith(tables)]
    if build is build_gpt2:
        linear.remove("lm_head.weight")  # the embedding's
    energy = option[0] == "--lora-energy"
    rank = lambda n: least_rank(tuned[n] - base[n], option[1]) if energy else option[1]
    assert_is_base_plus(merged_by_peft(load("base"), tmp_path / "adapter"), base, tuned, linear, rank)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and config["base_model_name_or_path"] == str((tmp_path / "base").resolve())
    assert config["fan_in_fan_out"] == (build is build_gpt2)
    assert config["r"] == max(map(rank, linear)) and bool(config["rank_pattern"]) == energy


def as_modules(tensors):
    """A torch model with the modules of a checkpoint: transformers 5 gives those of ViT other names."""
    import torch

    root = torch.nn.Module()
    for name, array in tensors.items():
        *path, last = name.split(".")
        at = root
        for i, part in enumerate(path):
            if not hasattr(at, part):
                t = tensors.get(".".join(path) + ".weight")
                linear = i == len(path) - 1 and t is not None and t.ndim == 2
                at.add_module(part, torch.nn.Linear(*t.shape[::-1]) if linear else torch.nn.Module())
            at = getattr(at, part)
        at.register_parameter(last, torch.nn.Parameter(torch.from_numpy(array.copy())))
    return root


def test_head_of_a_task_travels(tmp_path):
    """digits-vit: the classifier that the base lacks is in the adapter whole."""
    folder = tools.MODELS / "digits-vit"
    result = extract(folder / "plain", folder / "base", tmp_path / "adapter", "--lora-rank", 8, ranks=3)
    assert "parts of ‖τ‖²: embeddings" in result.err and "classifier" not in result.err
    base, fine = ({n: tools.values(t) for n, t in tools.read_model(folder / m).items()} for m in ("base", "plain"))
    heads = [n for n in fine if n not in base]
    assert sorted(heads) == ["classifier.bias", "classifier.weight"]
    start = {**base, **{n: np.zeros_like(fine[n]) for n in heads}}
    merged = merged_by_peft(as_modules(start), tmp_path / "adapter")
    linear = [n for n, t in base.items() if t.ndim == 2]
    assert len(linear) == 24
    assert_is_base_plus(merged, {**base, **{n: fine[n] for n in heads}}, fine, linear, lambda n: 8)


def test_same_files_on_any_number_of_ranks(tmp_path):
    folder = tools.MODELS / "bytes-llama"
    first = None
    for ranks in (1, 4):
        out = tmp_path / str(ranks)
        extract(folder / "c", folder / "base", out, "--lora-energy", 0.3, ranks=ranks)
        files = {p.name: p.read_bytes() for p in out.iterdir()}
        first = first or files
        assert files == first
    assert sorted(first) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "provenance.json"]
    extract(folder / "c", folder / "base", tmp_path / "1", "--lora-rank", 2, code=2)
    extract(folder / "c", folder / "base", tmp_path / "1", "--lora-rank", 2, "--force")
    tensors = tools.read_model(tmp_path / "1")
    assert tensors["base_model.model.lm_head.lora_A.weight"][1].shape == (2, 128)


def test_energy_and_shares_are_told(tmp_path):
    """The table's energy and the warning's shares, against NumPy."""
    random = np.random.default_rng(5)
    base = {"a.fc.weight": random.standard_normal((20, 30)), "a.fc.bias": random.standard_normal(20),
            "a.norm.weight": random.standard_normal(30), "embed_tokens.weight": random.standard_normal((9, 30))}  # fmt: skip
    base = {n: x.astype(np.float32) for n, x in base.items()}
    tuned = {n: (x + 0.1 * random.standard_normal(x.shape)).astype(np.float32) for n, x in base.items()}
    for name, tensors in (("base", base), ("tuned", tuned)):
        tools.write_folder(tmp_path / name, {n: ("F32", x) for n, x in tensors.items()})
    result = extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "adapter", "--lora-rank", 5)
    tau = {n: (tuned[n] - base[n]).astype(np.float64) for n in base}
    s = np.linalg.svd(tau["a.fc.weight"], compute_uv=False) ** 2
    assert f"{100 * s[:5].sum() / s.sum():.2f} %" in result.out and "a.fc.weight" in result.out
    total = sum((t**2).sum() for t in tau.values())
    for word, name in (("embeddings", "embed_tokens.weight"), ("biases", "a.fc.bias"), ("vectors", "a.norm.weight")):
        assert f"{word} {100 * (tau[name] ** 2).sum() / total:.3g} %" in result.err


def test_what_does_not_fit_is_refused(tmp_path):
    x = np.ones((4, 6), np.float32)
    for name, tensors in {"base": {"fc.weight": x}, "wide": {"fc.weight": np.ones((4, 7), np.float32)},
                          "nan": {"fc.weight": np.where(np.arange(6) == 2, np.nan, x).astype(np.float32)},
                          "none": {"v.bias": x[0]}, "vector": {"v.bias": x[0]}}.items():  # fmt: skip
        tools.write_folder(tmp_path / name, {n: ("F32", t) for n, t in tensors.items()})
    out = tmp_path / "out"
    for tuned, base, text in (("wide", "base", "fc.weight is F32 [4, 7]"), ("nan", "base", "fc.weight holds NaN"),
                              ("none", "vector", "has no linear layer")):  # fmt: skip
        result = extract(tmp_path / tuned, tmp_path / base, out, "--lora-rank", 1, ranks=0 if tuned == "none" else 2, code=3)
        assert text in result.err, result
    for options, text in [(("--lora-rank", 0), "whole number"), (("--lora-energy", "1.5"), "at most 1"), ((), "needs --lora-rank"),
                          (("--lora-rank", 1, "--lora-energy", 0.5), "exclude each other")]:  # fmt: skip
        assert text in extract(tmp_path / "nan", tmp_path / "base", out, *options, ranks=0, code=2).err
    result = extract(tmp_path / "base", tmp_path / "base", tmp_path / "out.h5", "--lora-rank", 1, ranks=0, code=2)
    assert "an adapter is a folder" in result.err
    assert not out.exists() and not (tmp_path / "out.h5").exists()
