"""The same configs give what mergekit gives: recorded for tiny models, with mergekit itself on bytes-llama (--full).

Every element lies within 2^-21 · (|θ0| + Σ |w_i θ_i|) of mergekit's, but for TIES where models have equal magnitudes at
their threshold (which of them stays is arbitrary) and where the sum that elects a sign cancels to rounding; and but for SLERP
where mergekit's cosine, a float32, is too coarse for the angle between nearly parallel tensors.
"""

import json
import pathlib
import re
import subprocess
import sys

import mergekit_cases
import numpy as np
import oracle
import pytest
import tools
import torch
import yaml

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
    "ties, all kept": "merge_method: ties\nbase_model: {base}\nmodels:\n"
    + "".join(f"  - {{model: {{{m}}}, parameters: {{weight: 0.3}}}}\n" for m in "abcde") + "dtype: float32\n",
}  # fmt: skip


# ---- what a config means for one tensor, written down once more, naively ------------------------------------------------


def evaluate(setting, tensor, t):
    """A number, a list over the layers, or filters; None where no filter matches."""
    if isinstance(setting, list) and isinstance(setting[0], dict):
        for part in setting:
            if part.get("filter", "*") == "*" or part["filter"] in tensor:
                return evaluate(part["value"], tensor, t)
        return None
    if isinstance(setting, list):
        at = t * (len(setting) - 1)
        low = int(at)
        high = min(low + 1, len(setting) - 1)
        return (1 - (at - low)) * setting[low] + (at - low) * setting[high]
    return setting


def position(tensor, layers):
    found = re.match(r"model\.layers\.(\d+)\.", tensor)
    return int(found.group(1)) / (layers - 1) if found else 0


class Meaning:
    """The numbers of one config for one tensor."""

    def __init__(self, config, tensor, layers):
        self.config, self.tensor, self.t = config, tensor, position(tensor, layers)

    def shared(self, name, default=None):
        value = evaluate(self.config.get("parameters", {}).get(name), self.tensor, self.t)
        return default if value is None else value

    def of_model(self, model, name, default=None):
        value = evaluate(model.get("parameters", {}).get(name), self.tensor, self.t)
        return self.shared(name, default) if value is None else value


def shares(cosine, t):
    """The factors of SLERP, in float64."""
    if abs(cosine) > 0.9995:
        return 1 - t, t
    angle = np.arccos(cosine)
    return np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)


def float32_cosine(a, b):
    """As mergekit computes it: normalised tensors and their product in float32."""
    a, b = (torch.from_numpy(np.array(x, np.float32)).reshape(1, -1) for x in (a, b))
    a, b = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (a, b))
    return float((a * b).sum(dim=1).clamp(-1, 1))


def slerp_with_float32_cosine(config, tensor, base, theta, layers):
    share = shares(float32_cosine(base, theta[-1]), Meaning(config, tensor, layers).shared("t"))
    return share[0] * base.astype(np.float64) + share[1] * theta[-1].astype(np.float64)


def bound_and_free(config, tensor, base, theta, layers):
    """For one tensor: the bound on the difference, and the masks of elements that may differ for their ties' or their
    election's sake. theta: the weights of config's models, in order; base: or None."""
    meaning, method = Meaning(config, tensor, layers), config["merge_method"]
    models = config["models"]
    shape = theta[0].shape
    nothing = np.zeros(shape, bool)
    if method == "passthrough":
        return np.abs(meaning.of_model(models[0], "scale", 1) * theta[0].astype(np.float64)), nothing, nothing
    if method == "slerp":
        t, one = meaning.shared("t"), theta[-1].astype(np.float64)
        zero = base.astype(np.float64)
        cosine = (zero * one).sum() / (np.linalg.norm(zero) * np.linalg.norm(one))
        share = shares(cosine, t)
        return np.abs(share[0] * zero) + np.abs(share[1] * one), nothing, nothing
    weights = [meaning.of_model(m, "weight") for m in models]
    if method == "linear":
        total = sum(weights) if meaning.shared("normalize", True) else 1
        return sum(np.abs(w / total * x.astype(np.float64)) for w, x in zip(weights, theta)), nothing, nothing
    part = [(m, w, x) for m, w, x in zip(models, weights, theta) if m["model"] != config["base_model"]]
    factor = max(1, abs(meaning.shared("lambda", 1)))
    size = np.abs(base.astype(np.float64)) + factor * sum(np.abs(w * x.astype(np.float64)) for _, w, x in part)
    if method != "ties":
        return size, nothing, nothing
    ties, votes, weight_of_votes = nothing.copy(), np.zeros(shape), np.zeros(shape)
    for model, w, x in part:
        tau = oracle.task_vector(x, base)
        magnitude = np.abs(tau)
        keep = max(1, int(meaning.of_model(model, "density", 1) * tau.size))
        threshold = np.sort(magnitude, axis=None)[-keep]
        if np.count_nonzero(magnitude >= threshold) > keep:
            ties |= magnitude == threshold
        kept = np.where(oracle.largest(magnitude.reshape(-1), keep).reshape(shape), tau, 0).astype(np.float64)
        votes += w * kept
        weight_of_votes += np.abs(w * kept)
    return size, ties, (np.abs(votes) <= 2.0**-22 * weight_of_votes) & (weight_of_votes > 0)


# ---- slices, written down once more, naively ----------------------------------------------------------------------------


def find_slice(slices, tensor):
    """The slice of a tensor, its layer in it, and t. What comes before the layers is the first slice's, the rest the last's."""
    found = re.match(r"model\.layers\.(\d+)\.", tensor)
    if not found:
        return (slices[0] if "embed" in tensor else slices[-1]), None, 0
    layer = int(found.group(1))
    for part in slices:
        first, end = part["sources"][0]["layer_range"]
        if layer < end - first:
            return part, layer, layer / (end - first - 1) if end - first > 1 else 1
        layer -= end - first
    raise AssertionError(tensor)


def flatten(config, tensor):
    """A config of whole models that means the same for one tensor, with plain numbers; and the models' tensors in order."""
    module = config.get("modules", {}).get("default", config)
    if "slices" not in module:
        return config, [tensor] * len(config["models"])
    part, layer, t = find_slice(module["slices"], tensor)
    levels = [part.get("parameters", {}), module.get("parameters", {}), config.get("parameters", {})]
    models, names = [], []
    for source in part["sources"]:
        own = tensor
        if layer is not None:
            own = re.sub(r"layers\.\d+\.", f"layers.{source['layer_range'][0] + layer}.", tensor)
        values = {}
        for level in reversed([source.get("parameters", {}), *levels]):
            found = {p: evaluate(v if isinstance(v, list) or not isinstance(v, dict) else [v], own, t)
                     for p, v in level.items()}  # fmt: skip
            values |= {p: v for p, v in found.items() if v is not None}
        models.append({"model": source["model"], "parameters": values})
        names.append(own)
    shared = {}
    for level in reversed(levels):
        found = {p: evaluate(v if isinstance(v, list) or not isinstance(v, dict) else [v], tensor, t)
                 for p, v in level.items()}  # fmt: skip
        shared |= {p: v for p, v in found.items() if v is not None}
    flat = {"merge_method": config["merge_method"], "models": models, "parameters": shared}
    if base := part.get("base_model", config.get("base_model")):
        flat["base_model"] = base
    return flat, names


def compare(case, text, ours, theirs, layers):
    """Assert what the module's comment says; returns the counts."""
    whole = yaml.safe_load(text)
    assert ours.keys() == theirs.keys()
    cache = {}

    def read(path):
        if path not in cache:
            cache[path] = {n: tools.values(t) for n, t in tools.read_model(path).items()}
        return cache[path]

    counts = dict(elements=0, identical=0, rounding=0, ties=0, election=0, angle=0)
    worst, worst_angle = 0.0, 0.0
    for name, theirs_value in theirs.items():
        a, b = ours[name].astype(np.float64), theirs_value.astype(np.float64)
        config, names = flatten(whole, name)
        theta = [read(m["model"])[n] for m, n in zip(config["models"], names)]
        base = None
        if "base_model" in config:
            listed = [m["model"] for m in config["models"]]
            own = names[listed.index(config["base_model"])] if config["base_model"] in listed else name
            base = read(config["base_model"])[own]
        if config["merge_method"] == "slerp":  # the base first
            theta.sort(key=lambda x: x is not base)
        size, ties, election = bound_and_free(config, name, base, theta, layers)
        off = np.abs(a - b)
        beyond = off > 2.0**-21 * size
        angle = np.zeros(a.shape, bool)
        if config["merge_method"] == "slerp" and beyond.any():
            coarse = slerp_with_float32_cosine(config, name, base, theta, layers)
            angle = beyond & (np.abs(coarse - b) <= 2.0**-21 * size)
        unexplained = beyond & ~ties & ~election & ~angle
        assert not unexplained.any(), (
            f"{case}: {name}: {np.count_nonzero(unexplained)} of {a.size} elements differ, "
            f"worst {np.max(np.where(unexplained, off / np.maximum(size, 1e-300), 0)) * 2**21:.3g} of the bound"
        )
        counts["elements"] += a.size
        counts["identical"] += np.count_nonzero(off == 0)
        counts["rounding"] += np.count_nonzero((off > 0) & ~beyond)
        counts["ties"] += np.count_nonzero(beyond & ties)
        counts["angle"] += np.count_nonzero(angle)
        counts["election"] += np.count_nonzero(beyond & ~ties & election)
        worst = max(worst, float(np.max(np.where(beyond | (size == 0), 0, off / np.where(size == 0, 1, size)))))
        worst_angle = max(worst_angle, float(np.max(np.where(angle, off / np.where(size == 0, 1, size), 0))))
    print(f"{case}: " + ", ".join(f"{n} {k}" for k, n in counts.items())
          + f", rounding at most {worst * 2**21:.3f}, angle {worst_angle * 2**21:.3f} of the bound")  # fmt: skip
    return counts


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
    tools.merge(config, tmp_path / "bare", "--no-copy-tokenizer")
    assert sorted(f.name for f in (tmp_path / "bare").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "nps-merge.yaml", "provenance.json",
    ]  # fmt: skip


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
    assert "ties" in case or counts["ties"] == counts["election"] == 0
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
