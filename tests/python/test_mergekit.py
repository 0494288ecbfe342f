"""The same configs give what mergekit gives: recorded for tiny models, with mergekit itself on bytes-llama (--full).
mergekit_meaning.py tells what may differ, test_mergekit_live.py compares slices and vocabularies."""

import json
import pathlib
import subprocess
import sys

import mergekit_cases
import numpy as np
import oracle
import pytest
import tools
import yaml
from mergekit_meaning import SELECTING, compare

HERE = pathlib.Path(__file__).parent

FULL_CASES = {
    **mergekit_cases.CASES,
    "linear of five": "merge_method: linear\nmodels:\n"
    + "".join(f"  - {{model: {{{m}}}, parameters: {{weight: 0.3}}}}\n" for m in "abcde") + "dtype: float32\n",
    "task_arithmetic of five": "merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n"
    + "".join(f"  - {{model: {{{m}}}, parameters: {{weight: 0.3}}}}\n" for m in "abcde") + "dtype: float32\n",
    "ties of five": "merge_method: ties\nbase_model: {base}\nmodels:\n"
    + "".join(f"  - {{model: {{{m}}}, parameters: {{weight: 0.3, density: 0.5}}}}\n" for m in "abcde")
    + "dtype: float32\n",
    "sce of five": "merge_method: sce\nbase_model: {base}\nmodels:\n"
    + "".join(f"  - {{model: {{{m}}}}}\n" for m in "abcde") + "parameters: {select_topk: 0.3}\ndtype: float32\n",
    "ramplus_tl of five": "merge_method: ramplus_tl\nbase_model: {base}\nmodels:\n"
    + "".join(f"  - {{model: {{{m}}}}}\n" for m in "abcde") + "dtype: float32\n",
    "ties, all kept": "merge_method: ties\nbase_model: {base}\nmodels:\n"
    + "".join(f"  - {{model: {{{m}}}, parameters: {{weight: 0.3}}}}\n" for m in "abcde") + "dtype: float32\n",
}  # fmt: skip


def ours_of(config, out, ranks=0):
    tools.merge(config, out, ranks=ranks)
    return {name: tools.values(stored) for name, stored in tools.read_model(out).items()}


def layers_of(text):
    config = yaml.safe_load(text)
    module = config.get("modules", {}).get("default", config)
    if "slices" not in module:
        return mergekit_cases.TINY["num_hidden_layers"]
    return sum(s["sources"][0]["layer_range"][1] - s["sources"][0]["layer_range"][0] for s in module["slices"])


@pytest.mark.parametrize("case", {**mergekit_cases.CASES, **mergekit_cases.SLICES})
def test_tiny_models_as_recorded(case, tmp_path):
    models = mergekit_cases.write_tiny_models(tmp_path)
    text = mergekit_cases.text_of(case, models, {**mergekit_cases.CASES, **mergekit_cases.SLICES})
    ours = ours_of(tools.write_config(tmp_path / "c.yaml", text), tmp_path / "out.h5", ranks=2)
    flat, theirs, at = np.load(HERE / "expected/mergekit.npz")[case], {}, 0
    for name, shape in mergekit_cases.tiny_shapes(layers_of(text)):
        n = int(np.prod(shape))
        theirs[name] = flat[at : at + n].reshape(shape)
        at += n
    assert at == flat.size
    counts = compare(case, text, ours, theirs, mergekit_cases.TINY["num_hidden_layers"])
    assert counts["ties"] == counts["election"] == counts["angle"] == 0


def compare_by_token(case, text, ours, theirs):
    """Rows of the vocabulary by their tokens. The bound is of a sum of the models' weights with factors of at most 1."""
    (ours, our_tokens), (theirs, their_tokens) = ours, theirs
    assert our_tokens == their_tokens and ours.keys() == theirs.keys()
    most = max(
        np.abs(tools.values(t)).max()
        for m in yaml.safe_load(text).get("models", []) for t in tools.read_model(m["model"]).values()
    ) if "models" in yaml.safe_load(text) else 4.0  # fmt: skip
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        off = np.abs(ours[name].astype(np.float64) - value)
        assert off.max() <= 2.0**-21 * (np.abs(value).max() + most), (case, name, off.max())


@pytest.mark.parametrize("case", mergekit_cases.TOKENS)
def test_vocabularies_as_recorded(case, tmp_path):
    models = mergekit_cases.write_token_models(tmp_path)
    text = mergekit_cases.text_of(case, models, mergekit_cases.TOKENS)
    tools.merge(tools.write_config(tmp_path / "c.yaml", text), tmp_path / "out", ranks=3)
    recorded = np.load(HERE / "expected/mergekit.npz")
    tokens = json.loads(str(recorded[f"tokens of {case}"]))
    theirs = {k.split(": ", 1)[1]: recorded[k] for k in recorded if k.startswith(f"{case}: ")}
    compare_by_token(case, text, mergekit_cases.by_token(tmp_path / "out"), (theirs, tokens))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vocab_size"] == len(theirs["model.embed_tokens.weight"])


def test_vocabularies_are_the_same_on_any_number_of_ranks(tmp_path):
    models = mergekit_cases.write_token_models(tmp_path)
    text = mergekit_cases.text_of("tokens, padded", models, mergekit_cases.TOKENS)
    config = tools.write_config(tmp_path / "c.yaml", text)
    for ranks in (1, 4):
        tools.merge(config, tmp_path / f"{ranks}", ranks=ranks)
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "4" / file).read_bytes()


def test_chat_templates_and_copied_tokenizers(tmp_path):
    models = mergekit_cases.write_token_models(tmp_path)
    for name, template in (("base", "{{ 'first' }} and more"), ("a", "{{ 'other' }}"), ("c", "{{ 'other' }}")):
        (models[name] / "chat_template.jinja").write_text(template)
    text = mergekit_cases.text_of("union", models, mergekit_cases.TOKENS)
    config = tools.write_config(tmp_path / "c.yaml", text)
    for template, expected in (("auto", "{{ 'other' }}"), ("chatml", None), ("{{ messages[0]['content'] }}", "{{ messages[0]['content'] }}")):  # fmt: skip
        tools.merge(config, tmp_path / "out", "--force", "--set", f"chat_template={json.dumps(template)}")
        found = (tmp_path / "out/chat_template.jinja").read_text()
        assert found == expected or (expected is None and "<|im_start|>" in found)
    assert "chat_template: expected" in tools.merge(config, tmp_path / "no", "--set", "chat_template=none", code=2).err
    bare = tools.merge(config, tmp_path / "bare", "--no-copy-tokenizer", "--set", "chat_template=chatml")
    assert "chat_template: is not written" in bare.err
    assert sorted(f.name for f in (tmp_path / "bare").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "nps-merge.yaml", "provenance.json",
    ]  # fmt: skip


def test_tokens_beyond_the_rows_of_the_base(tmp_path):
    """They go, with the merges that make them: tokenizers refuses a merge into a token that is not there."""
    import tokenizers

    models = mergekit_cases.write_token_models(tmp_path)
    tokens = [*mergekit_cases.VOCABULARIES["base"][0], "</s>", "dd"]
    mergekit_cases.write_tokenizer(models["base"], tokens, [])
    text = mergekit_cases.text_of("base", models, mergekit_cases.TOKENS)
    tools.merge(tools.write_config(tmp_path / "c.yaml", text), tmp_path / "out")
    whole, merged = (tokenizers.Tokenizer.from_file(str(f / "tokenizer.json")) for f in (models["base"], tmp_path / "out"))
    assert whole.encode("ddcd").tokens == ["dd", "cd"] and merged.encode("ddcd").tokens == ["d", "d", "cd"]
    assert merged.get_vocab() == {token: i for i, token in enumerate(tokens[:-1])}


def test_tokenizers_of_composed_models(tmp_path):
    """BASE+ADAPTER has its base's tokenizer, and a model in an archive that of the archive's base."""
    models = mergekit_cases.write_token_models(tmp_path)
    tuned = tools.copy_folder(models["c"], tmp_path / "tuned")
    tensors = {n: (d, x + np.float32(0.5)) for n, (d, x) in tools.read_model(tuned).items()}
    tools.write_safetensors(tuned / "model.safetensors", tensors)
    archive = {"merge_method": "nps", "base_model": str(models["c"]), "models": [{"model": str(tuned)}],
               "nps": {"application": "compression", "density": 0.5, "subspaces": 1}}  # fmt: skip
    tools.merge(archive, tmp_path / "c.h5")
    (tmp_path / "adapter").mkdir()
    q = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    lora = {f"{q}_A.weight": ("F32", np.ones((1, 16), np.float32)), f"{q}_B.weight": ("F32", np.ones((16, 1), np.float32))}
    tools.write_safetensors(tmp_path / "adapter/adapter_model.safetensors", lora)
    (tmp_path / "adapter/adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    config = yaml.safe_load(mergekit_cases.text_of("another model's", models, mergekit_cases.TOKENS))
    found = []
    for source in (str(models["c"]), f"{models['c']}+adapter", "c.h5#tuned", "c.h5"):
        out = tmp_path / "out"
        tools.merge(tools.write_config(tmp_path / "t.yaml", {**config, "tokenizer_source": source}), out, "--force")
        found.append([(out / f).read_bytes() for f in ("model.safetensors", "tokenizer.json")])
    assert found[1:] == [found[0]] * 3


def test_two_tokens_with_one_id(tmp_path):
    models = mergekit_cases.write_token_models(tmp_path)
    tokenizer = json.loads((models["base"] / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "content": "<end>"})
    (models["base"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = yaml.safe_load(mergekit_cases.text_of("base", models, mergekit_cases.TOKENS))
    del config["tokenizer_source"]
    config["tokenizer"] = {"tokens": {t: {"source": {"kind": "zero"}, "force": True} for t in ("</s>", "<end>")}}
    assert "two of these tokens have one id, 8" in tools.merge(config, tmp_path / "out", code=2).err


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_with_the_same_random_numbers(method, tmp_path, monkeypatch):
    """mergekit's own function, which draws our words. Its ranks and probabilities are float32, the order of equal
    magnitudes is its own: here there are none, and no word falls between two precisions of a probability."""
    import torch
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorGroup

    random, names, seed = np.random.default_rng(23), ("base", "x", "y", "z"), 5
    models, draws = {name: {} for name in names}, {}
    for name, shape in {"wide": (40, 300), "long": (200, 17), "vector": (777,)}.items():
        base = random.standard_normal(shape).astype(np.float32)
        for i, model in enumerate(names):
            step = 0.1 * random.permutation(base.size).reshape(shape) / base.size * random.choice([-1, 1], shape)
            models[model][name] = base + (i > 0) * step.astype(np.float32)
        draws[name] = [oracle.random_words(seed ^ oracle.fnv1a(name), m, base.size).astype(np.float64) for m in range(3)]
    for model in names:
        tools.write_folder(tmp_path / model, {n: ("F32", x) for n, x in models[model].items()})
    weight, density, epsilon = (dict(enumerate(v, 1)) for v in ([0.3, 0.5, 0.4], [0.5, 0.3, 0.7], [0.15, 0.29, 0.2]))
    each = [{"model": str(tmp_path / names[m]),
             "parameters": {"weight": weight[m], "density": density[m], "epsilon": epsilon[m]}} for m in (1, 2, 3)]  # fmt: skip
    config = {"merge_method": method, "base_model": str(tmp_path / "base"), "models": each, "seed": seed,
              "dtype": "float32", "parameters": {"lambda": 0.8}}  # fmt: skip
    ours = ours_of(config, tmp_path / "out.h5")
    for name in ours:
        words = iter(draws[name])
        draw = lambda p: torch.from_numpy(next(words) / 2**32).reshape(p.shape).lt(p.double())
        monkeypatch.setattr(torch, "bernoulli", draw)
        group = TensorGroup.from_tensors([torch.from_numpy(models[m][name]) for m in names], base_index=0)
        theirs = registry.get(method).merge_group(
            group, weight=weight, density=density, epsilon=epsilon, rescale=True, int8_mask=False,
            normalize=method == "della", **{"lambda": 0.8}).numpy()  # fmt: skip
        assert np.abs(ours[name] - theirs).max() < 2e-6 and np.abs(ours[name] - models["base"][name]).max() > 0.01


def test_arcee_fusion_in_float64(tmp_path):
    """mergekit's own function, in float64: in float32 a row's divergence is a small difference of rounded numbers."""
    import torch
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorGroup

    random, tensors = np.random.default_rng(29), ({}, {})
    for name, shape in {"wide": (40, 300), "long": (900, 17), "vector": (777,), "conv": (8, 3, 5, 5)}.items():
        tensors[0][name] = random.standard_normal(shape).astype(np.float32)
        tensors[1][name] = tensors[0][name] + 0.1 * random.standard_normal(shape).astype(np.float32)
    for folder, weights in zip("ab", tensors):
        tools.write_folder(tmp_path / folder, {n: ("F32", x) for n, x in weights.items()})
    ours = ours_of({"merge_method": "arcee_fusion", "base_model": str(tmp_path / "a"),
                    "models": [{"model": str(tmp_path / "b")}]}, tmp_path / "out.h5")  # fmt: skip
    for name in ours:
        group = TensorGroup.from_tensors([torch.from_numpy(x[name].astype(np.float64)) for x in tensors], base_index=0)
        assert np.array_equal(ours[name], registry.get("arcee_fusion").merge_group(group).numpy().astype(np.float32))
        assert 0.01 < np.mean(ours[name] != tensors[0][name]) < 0.3


DOCUMENTED = ["""\
modules:
  default:
    models:
      - model: {model: {path: {a}}}
        parameters: {weight: 1.0, density: 0.5}
      - model: {b}
        parameters: {weight: [0, 0.3], density: {filter: mlp, value: 0.5}}
merge_method: dare_ties
base_model: {model: {path: {base}}}
parameters: {int8_mask: true}
dtype: bfloat16
chat_template: auto
""", """\
slices:
- sources:
  - {model: {a}, layer_range: [0, 3]}
  - {model: {base}, layer_range: [0, 3]}
merge_method: slerp
base_model: {base}
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {value: 0.5}]
dtype: float16
out_dtype: bfloat16
"""]  # fmt: skip


def test_documented_forms_plan(tmp_path):
    models = mergekit_cases.write_tiny_models(tmp_path)
    for i, text in enumerate(DOCUMENTED):
        config = tools.write_config(tmp_path / f"{i}.yaml", mergekit_cases.text_of(i, models, DOCUMENTED))
        result = tools.run(tools.MERGE, "--plan", config)
        assert result.code == 0 and "memory" in result.out, result
        assert i == 0 or "layers [0, 3): a [0, 3), base [0, 3)" in result.out


@pytest.fixture(scope="module")
def with_mergekit(tmp_path_factory):
    """Every case merged by mergekit, in one process: {case: (config, folder)}."""
    folder = tmp_path_factory.mktemp("mergekit")
    family = tools.MODELS / "bytes-llama"
    models = dict(
        zip("abcde", (family / m for m in ("french", "german", "python", "c", "legal"))), base=family / "base"
    )
    found, words = {}, []
    for case, text in FULL_CASES.items():
        for key, path in models.items():
            text = text.replace(f"{{{key}}}", str(path))
        config, out = tools.write_config(folder / f"{case}.yaml", text), folder / f"out {case}"
        found[case] = (config, out)
        words += [config, out]
    subprocess.run(
        [sys.executable, HERE / "run_mergekit.py", *words], check=True, timeout=1200, env=tools.environment()
    )
    return found


@pytest.mark.full
@pytest.mark.parametrize("case", FULL_CASES)
def test_bytes_llama_with_mergekit(case, with_mergekit, tmp_path):
    config, folder = with_mergekit[case]
    theirs = {name: tools.values(stored) for name, stored in tools.read_model(folder).items()}
    counts = compare(case, config.read_text(), ours_of(config, tmp_path / "out.h5", ranks=2), theirs, 4)
    method = yaml.safe_load(config.read_text())["merge_method"]
    assert method in (*SELECTING, "sce") or counts["ties"] == counts["election"] == 0
    assert "slerp" in case or counts["angle"] == 0


@pytest.mark.full
def test_the_program_mergekit_yaml_gives_the_same(tmp_path):
    """The command that users type, once; the other cases call what it calls."""
    models = mergekit_cases.write_tiny_models(tmp_path)
    text = mergekit_cases.text_of("task_arithmetic", models)
    config = tools.write_config(tmp_path / "c.yaml", text)
    program = pathlib.Path(sys.executable).parent / "mergekit-yaml"
    result = tools.run(
        program, config, tmp_path / "out", "--no-copy-tokenizer", "--no-write-model-card", "--quiet", limit=300
    )
    assert result.code == 0, result
    theirs = {name: tools.values(stored) for name, stored in tools.read_model(tmp_path / "out").items()}
    compare(
        "mergekit-yaml", text, ours_of(config, tmp_path / "out.h5"), theirs, mergekit_cases.TINY["num_hidden_layers"]
    )
