"""What a config means for each tensor, written down naively, and how far two results of it may lie apart.

Every element lies within 2^-21 · (|θ0| + Σ |w_i θ_i|) of mergekit's, but for methods that select by magnitude where models
have equal magnitudes at their threshold (which of them stays is arbitrary), and where the sum that elects a sign cancels to
rounding; and but for SLERP where mergekit's cosine, a float32, is too coarse for the angle between nearly parallel tensors.
Where SCE selects, its weights hang on what it selects: there mergekit's result is that of the formula with its own choice among
the entries whose variance is that of the threshold, to a rounding.
"""

import re

import numpy as np
import oracle
import tools
import torch
import yaml

LAYER = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d+)\.")
VOCABULARY = ("lm_head.weight", "embed_tokens.weight", "wte.weight")
SELECTING = ("ties", "breadcrumbs", "breadcrumbs_ties")
BEFORE_LAYERS = ("embed_tokens.weight", "wte.weight", "wpe.weight")

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
    found = LAYER.match(tensor)
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


OF_ANGLES = ("nuslerp", "multislerp", "karcher", "model_stock", "nearswap")


def sce_as_selected(base, theta, topk, theirs):
    """SCE with the entries that mergekit has selected, which differ from the base in its result; they must be the largest."""
    tau = np.stack([oracle.task_vector(x, base) for x in theta])
    variance, mask = oracle.sce_variance(tau).astype(np.float64), theirs != base
    wanted = oracle.sce_mask(tau, topk)
    least = variance[wanted].min(initial=np.inf)
    assert abs(np.count_nonzero(mask) - np.count_nonzero(wanted)) <= 1  # mergekit's count is a float32 product
    assert np.abs(variance[mask != wanted] - least).max(initial=0) <= 2.0**-22 * least
    return oracle.sce(base, theta, topk, mask)


def selection(method, meaning, model, magnitude):
    """What a model keeps of a flat tensor, and the entries that have the magnitude of a threshold and may or may not stay."""
    n, density = magnitude.size, meaning.of_model(model, "density", 1)
    if method == "ties":
        kept, bottom = max(1, int(density * n)), n - max(1, int(density * n))
        mask = oracle.largest(magnitude, kept)
    else:
        gamma = meaning.of_model(model, "gamma", 0.01)
        kept = int(density * n)
        bottom = max(0, n - kept - int(gamma * n))
        mask = oracle.breadcrumbs_mask(magnitude, density, gamma)
    ties, ordered = np.zeros(n, bool), np.sort(magnitude)
    for edge in (bottom, bottom + kept):
        if 0 < edge < n and ordered[edge - 1] == ordered[edge]:
            ties |= magnitude == ordered[edge]
    return mask, ties


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
    if method in OF_ANGLES:
        return sum(np.abs(x.astype(np.float64)) for x in [*theta, *([base] if base is not None else [])]), nothing, nothing
    if method in ("sce", "ram", "ramplus_tl"):
        others = [x.astype(np.float64) for m, x in zip(models, theta) if m["model"] != config["base_model"]]
        factor = 1 + abs(meaning.shared("r", 0.1)) * meaning.shared("alpha", 0.2) if method == "ramplus_tl" else 1
        votes, sizes = sum(x - base for x in others), sum(np.abs(x - base) for x in others)
        cancels = (np.abs(votes) <= 2.0**-22 * sizes) & (sizes > 0) if method == "sce" else nothing
        return np.abs(base.astype(np.float64)) + factor * sum(np.abs(x) for x in others), nothing, cancels
    weights = [meaning.of_model(m, "weight") for m in models]
    if method == "linear":
        total = sum(weights) if meaning.shared("normalize", True) else 1
        return sum(np.abs(w / total * x.astype(np.float64)) for w, x in zip(weights, theta)), nothing, nothing
    part = [(m, w, x) for m, w, x in zip(models, weights, theta) if m["model"] != config["base_model"]]
    factor = max(1, abs(meaning.shared("lambda", 1)))
    size = np.abs(base.astype(np.float64)) + factor * sum(np.abs(w * x.astype(np.float64)) for _, w, x in part)
    if method not in SELECTING:
        return size, nothing, nothing
    ties, votes, weight_of_votes = nothing.copy(), np.zeros(shape), np.zeros(shape)
    for model, w, x in part:
        tau = oracle.task_vector(x, base)
        mask, at_threshold = (m.reshape(shape) for m in selection(method, meaning, model, np.abs(tau).reshape(-1)))
        ties |= at_threshold
        kept = np.where(mask, tau, 0).astype(np.float64)
        votes += w * kept
        weight_of_votes += np.abs(w * kept)
    if method == "breadcrumbs":
        return size, ties, nothing
    return size, ties, (np.abs(votes) <= 2.0**-22 * weight_of_votes) & (weight_of_votes > 0)


# ---- slices, written down once more, naively ----------------------------------------------------------------------------


def find_slice(slices, tensor):
    """The slice of a tensor, its layer in it, and t. What comes before the layers is the first slice's, the rest the last's."""
    found = LAYER.match(tensor)
    if not found:
        return (slices[0] if tensor.endswith(BEFORE_LAYERS) else slices[-1]), None, 0
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
            begin, end = LAYER.match(tensor).span(1)
            own = f"{tensor[:begin]}{source['layer_range'][0] + layer}{tensor[end:]}"
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
    base = part.get("base_model", config.get("base_model"))
    if base and config["merge_method"] != "passthrough":
        flat["base_model"] = base
    return flat, names


# ---- vocabularies, written down once more, naively -----------------------------------------------------------------------


class Vocabulary:
    """The rows of every model in the order of the merged tokens, then those of padding."""

    def __init__(self, text, tokens, ids):
        """tokens: of the merged model, in the order wanted. ids: {model: {token: its row}}."""
        config = yaml.safe_load(text)
        self.tokens, self.ids, self.rules = tokens, ids, config.get("tokenizer", {}).get("tokens", {})
        pad = config.get("tokenizer", {}).get("pad_to_multiple_of", 1)
        self.padding = -len(tokens) % pad

    def source(self, token, arrays):
        """What the config says of a token."""
        source = self.rules[token]["source"]
        if not isinstance(source, dict):
            return arrays[source][self.ids[source][token]]
        if source["kind"] == "zero":
            return np.zeros_like(next(iter(arrays.values()))[0])
        row = source["token_id"] if "token_id" in source else self.ids[source["model"]][source["token"]]
        return arrays[source["model"]][row]

    def row(self, token, model, arrays, base):
        rule = self.rules.get(token)
        if token in self.ids[model] and not (rule and rule.get("force")):
            return arrays[model][self.ids[model][token]]
        if rule:
            return self.source(token, arrays)
        having = [m for m in arrays if token in self.ids[m]]
        if base in having:
            having = [base]
        if not having:
            return np.zeros_like(arrays[model][0])
        return sum(arrays[m][self.ids[m][token]] for m in having) / len(having)

    def align(self, arrays, base):
        """arrays: {model: rows in its own order}, float64; those of one merged tensor."""
        found = {}
        for model in arrays:
            rows = np.array([self.row(token, model, arrays, base) for token in self.tokens])
            found[model] = np.concatenate([rows, np.repeat(rows.mean(0, keepdims=True), self.padding, axis=0)])
        return found


# ---- two results ---------------------------------------------------------------------------------------------------------


class Inputs:
    """The tensors of models that go into one of the merged model, read once."""

    def __init__(self, vocabulary):
        self.vocabulary, self.models = vocabulary, {}

    def read(self, model, name):
        if model not in self.models:
            self.models[model] = {n: tools.values(t) for n, t in tools.read_model(model).items()}
        tensors = self.models[model]
        if name not in tensors and name == "lm_head.weight":  # tied
            name = "model.embed_tokens.weight"
        return tensors[name]

    def of(self, config, names, name):
        """The models' arrays in order and the base's or None, twice: their values, and how large they are: where rows are
        means, the mean of magnitudes."""
        listed = [m["model"] for m in config["models"]]
        base = config.get("base_model")
        own = dict(zip(listed, names))
        if base:
            own.setdefault(base, name)
        arrays = {m: self.read(m, n) for m, n in own.items()}
        sizes = {m: np.abs(a) for m, a in arrays.items()}
        if self.vocabulary and name.endswith(VOCABULARY):
            arrays = self.vocabulary.align({m: a.astype(np.float64) for m, a in arrays.items()}, base)
            sizes = self.vocabulary.align({m: a.astype(np.float64) for m, a in sizes.items()}, base)
        return [([a[m] for m in listed], a[base] if base else None) for a in (arrays, sizes)]


def compare(case, text, ours, theirs, layers, vocabulary=None):
    """Assert what the module's comment says; returns the counts."""
    whole, inputs = yaml.safe_load(text), Inputs(vocabulary)
    assert ours.keys() == theirs.keys()
    counts = dict(elements=0, identical=0, rounding=0, ties=0, election=0, angle=0)
    worst, worst_angle = 0.0, 0.0
    for name, theirs_value in theirs.items():
        a, b = ours[name].astype(np.float64), theirs_value.astype(np.float64)
        assert a.shape == b.shape, name
        config, names = flatten(whole, name)
        (theta, base), (sizes, base_size) = inputs.of(config, names, name)
        if config["merge_method"] == "slerp":  # the base first
            theta.sort(key=lambda x: x is not base)
        elif config["merge_method"] not in (*SELECTING, "sce"):
            theta, base = sizes, base_size
        size, ties, election = bound_and_free(config, name, base, theta, layers)
        off = np.abs(a - b)
        beyond = off > 2.0**-21 * size
        angle = np.zeros(a.shape, bool)
        if config["merge_method"] == "slerp" and beyond.any():
            coarse = slerp_with_float32_cosine(config, name, base, theta, layers)
            angle = beyond & (np.abs(coarse - b) <= 2.0**-21 * size)
        topk = Meaning(config, name, layers).shared("select_topk", 1)
        if config["merge_method"] == "sce" and topk < 1 and beyond.any():
            others = [x for m, x in zip(config["models"], theta) if m["model"] != config["base_model"]]
            ties = beyond & (np.abs(sce_as_selected(base, others, topk, theirs_value) - b) <= 2.0**-21 * size)
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
