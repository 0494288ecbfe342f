"""Configs that mergekit and this program are both given, word for word, and the tiny models of the recorded ones."""

import json

import numpy as np
import tools

# {base}, {a}, {b}, {c}: the models' folders.
CASES = {
    "linear": """\
merge_method: linear
models:
  - model: {a}
    parameters:
      weight: [1, 0.25, 2]
  - model: {b}
    parameters:
      weight:
        - filter: mlp
          value: [0.2, 0.9]
        - filter: self_attn
          value: 0.6
        - value: 0.4
  - model: {c}
    parameters: {weight: 0.3}
parameters: {normalize: true}
dtype: float32
""",
    "linear, not normalized": """\
merge_method: linear
models:
  - model: {a}
    parameters: {weight: 0.7}
  - model: {base}
    parameters: {weight: -0.2}
parameters: {normalize: false}
dtype: float32
""",
    "task_arithmetic": """\
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {a}
    parameters:
      weight: [0.1, 0.5, 0.3]
  - model: {b}
    parameters:
      weight:
        - filter: q_proj
          value: 0.8
        - filter: mlp
          value: [0.9, 0.1]
        - value: 0.35
  - model: {base}
  - model: {c}
parameters:
  weight: 0.6
  lambda: 0.7
dtype: float32
""",
    "ties": """\
merge_method: ties
base_model: {base}
models:
  - model: {a}
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: {b}
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: {c}
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0.25
parameters:
  normalize: true
  int8_mask: true
dtype: float32
""",
    "ties, not normalized": """\
merge_method: ties
base_model: {base}
models:
  - model: {a}
    parameters: {density: 0.2, weight: 0.8}
  - model: {b}
    parameters: {density: 0.6, weight: -0.4}
parameters: {normalize: false, lambda: 1.3}
dtype: float32
""",
    "breadcrumbs": """\
merge_method: breadcrumbs
base_model: {base}
models:
  - model: {a}
    parameters:
      density: [1, 0.7, 0.3]
      gamma: [0.02, 0.2]
      weight: 0.6
  - model: {b}
    parameters:
      density: 0.9
      weight: [0.2, 0.7]
  - model: {c}
    parameters:
      density: 0.5
      gamma:
        - filter: mlp
          value: 0.25
        - value: 0.1
      weight: -0.3
parameters: {lambda: 0.9}
dtype: float32
""",
    "breadcrumbs_ties": """\
merge_method: breadcrumbs_ties
base_model: {base}
models:
  - model: {a}
    parameters: {density: 0.6, weight: 0.8}
  - model: {b}
    parameters: {density: 0.8, gamma: 0.3, weight: 0.5}
  - model: {c}
    parameters: {density: 0.3, gamma: 0, weight: 0.4}
parameters: {gamma: 0.05, normalize: true}
dtype: float32
""",
    "sce": """\
merge_method: sce
base_model: {base}
models:
  - model: {a}
  - model: {b}
  - model: {c}
parameters:
  select_topk:
    - filter: mlp
      value: [0.2, 0.7]
    - filter: norm
      value: 1
    - value: 0.37
dtype: float32
""",
    "sce, all kept": """\
merge_method: sce
base_model: {base}
models:
  - model: {a}
  - model: {base}
  - model: {b}
  - model: {c}
parameters: {int8_mask: true}
dtype: float32
""",
    "ram": """\
merge_method: ram
base_model: {base}
models:
  - model: {a}
  - model: {b}
  - model: {c}
parameters:
  epsilon:
    - filter: mlp
      value: [0.03, 0.06]
    - value: 0.004
dtype: float32
""",
    "ramplus_tl": """\
merge_method: ramplus_tl
base_model: {base}
models:
  - model: {a}
  - model: {b}
  - model: {c}
parameters: {epsilon: 0.006, r: [0.1, 0.8], alpha: 0.5}
dtype: float32
""",
    "slerp": """\
merge_method: slerp
base_model: {base}
models:
  - model: {base}
  - model: {a}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: float32
""",
    "passthrough": """\
merge_method: passthrough
models:
  - model: {b}
    parameters:
      scale:
        - filter: o_proj
          value: 0.5
        - filter: mlp.down_proj
          value: [0.25, 1.5]
        - value: 1.0
dtype: float32
""",
}

# Layers of several models. What comes after the layers has as many sources as what comes before: see docs/mergekit.md.
SLICES = {
    "frankenmerge": """\
slices:
  - sources:
      - model: {a}
        layer_range: [0, 2]
  - sources:
      - model: {b}
        layer_range: [1, 3]
        parameters:
          scale:
            - filter: o_proj
              value: 0.0
            - filter: layers.2.mlp
              value: [0.25, 1.5]
            - value: 1.0
  - sources:
      - model: {a}
        layer_range: [2, 3]
merge_method: passthrough
dtype: float32
""",
    "linear over slices": """\
slices:
  - sources:
      - model: {a}
        layer_range: [0, 2]
        parameters: {weight: [0.2, 0.9]}
      - model: {b}
        layer_range: [1, 3]
    parameters:
      weight:
        - filter: self_attn
          value: 0.7
        - value: 0.4
  - sources:
      - model: {b}
        layer_range: [0, 1]
      - model: {c}
        layer_range: [0, 1]
        parameters: {weight: 0.75}
parameters:
  weight: 0.3
  normalize: true
dtype: float32
""",
    "slerp over slices": """\
slices:
  - sources:
      - model: {base}
        layer_range: [0, 3]
      - model: {a}
        layer_range: [0, 3]
merge_method: slerp
base_model: {base}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float32
""",
    "ties in a module": """\
merge_method: ties
base_model: {base}
modules:
  default:
    slices:
      - sources:
          - model: {a}
            layer_range: [0, 2]
            parameters: {density: 0.7}
          - model: {base}
            layer_range: [1, 3]
      - sources:
          - model: {base}
            layer_range: [2, 3]
          - model: {c}
            layer_range: [0, 1]
            parameters: {weight: {filter: mlp, value: 0.5}}
    parameters: {density: 0.5}
parameters: {weight: 0.25, density: 0.9}
dtype: float32
""",
    "task_arithmetic with a base of a slice": """\
merge_method: task_arithmetic
slices:
  - sources:
      - {model: {base}, layer_range: [0, 2]}
      - {model: {a}, layer_range: [0, 2], parameters: {weight: [0.1, 0.6]}}
    base_model: {base}
  - sources:
      - {model: {c}, layer_range: [2, 3]}
      - {model: {b}, layer_range: [2, 3]}
    base_model: {c}
parameters: {weight: 0.5, lambda: 0.8}
dtype: float32
""",
}  # fmt: skip
SLICES["linear over slices"] = "merge_method: linear\n" + SLICES["linear over slices"]

# Vocabularies that differ: models with tokenizers, of write_token_models().
TOKENS = {
    "union": """\
merge_method: linear
models:
  - {model: {base}, parameters: {weight: 0.5}}
  - {model: {a}, parameters: {weight: 0.3}}
  - {model: {c}, parameters: {weight: 0.2}}
tokenizer_source: union
dtype: float32
""",
    "base": """\
merge_method: task_arithmetic
base_model: {base}
models:
  - {model: {a}, parameters: {weight: 0.3}}
  - {model: {c}, parameters: {weight: 0.2}}
tokenizer_source: base
dtype: float32
""",
    "another model's": """\
merge_method: linear
base_model: {base}
models:
  - {model: {base}, parameters: {weight: 0.5}}
  - {model: {a}, parameters: {weight: 0.4}}
tokenizer_source: {c}
dtype: float32
""",
    "tokens, padded": """\
merge_method: linear
base_model: {base}
models:
  - {model: {base}, parameters: {weight: 0.5}}
  - {model: {a}, parameters: {weight: 0.3}}
  - {model: {c}, parameters: {weight: 0.2}}
tokenizer:
  source: union
  tokens:
    "x": {source: {c}}
    "<|im_start|>": {source: {c}, force: true}
    "<|new|>": {source: {kind: zero}}
    "<|renamed|>": {source: {kind: model_token, model: {a}, token: "<|im_start|>"}}
    "<|third|>": {source: {kind: model_token, model: {base}, token_id: 3}, force: true}
  pad_to_multiple_of: 16
dtype: float32
""",
    "slices": """\
merge_method: passthrough
slices:
  - sources: [{model: {base}, layer_range: [0, 2]}]
  - sources: [{model: {c}, layer_range: [1, 2]}]
tokenizer: {source: union}
dtype: float32
""",
    "tied": """\
merge_method: linear
models:
  - {model: {base-tied}, parameters: {weight: 0.5}}
  - {model: {a-tied}, parameters: {weight: 0.5}}
tokenizer_source: union
dtype: float32
""",
    "tied and untied": """\
merge_method: linear
base_model: {base}
models:
  - {model: {base}, parameters: {weight: 0.5}}
  - {model: {a-tied}, parameters: {weight: 0.5}}
tokenizer_source: base
dtype: float32
""",
}

TINY = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
            vocab_size=16, head_dim=8)  # fmt: skip


def tiny_shapes(layers=TINY["num_hidden_layers"]):
    c = TINY
    h, inner, kv = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * c["head_dim"]
    yield "lm_head.weight", (c["vocab_size"], h)
    yield "model.embed_tokens.weight", (c["vocab_size"], h)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (h,)
        yield p + "post_attention_layernorm.weight", (h,)
        for name, rows, columns in [("self_attn.q_proj", h, h), ("self_attn.k_proj", kv, h), ("self_attn.v_proj", kv, h),
                                    ("self_attn.o_proj", h, h), ("mlp.gate_proj", inner, h), ("mlp.up_proj", inner, h),
                                    ("mlp.down_proj", h, inner)]:  # fmt: skip
            yield f"{p}{name}.weight", (rows, columns)
    yield "model.norm.weight", (h,)


def write_tiny_models(folder):
    """base, a, b, c: random Llamas of 6,400 parameters; a is far from the base, b and c are near. The stream of RandomState
    is the same in every version of NumPy."""
    random = np.random.RandomState(20240229)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
              "tie_word_embeddings": False, "max_position_embeddings": 64, **TINY}  # fmt: skip
    base = {name: random.standard_normal(shape).astype(np.float32) for name, shape in tiny_shapes()}
    for model, distance in (("base", 0), ("a", 0.8), ("b", 0.05), ("c", 0.02)):
        tensors = {}
        for name, value in base.items():
            step = random.standard_normal(value.shape).astype(np.float32)
            tensors[name] = ("F32", value + np.float32(distance) * step)
        tools.write_folder(folder / model, tensors, config)
    return {model: folder / model for model in ("base", "a", "b", "c")}


VOCABULARIES = {
    "base": (["<s>", "a", "b", "c", "d", "e", "ab", "cd"], ["</s>"]),
    "a": (["<s>", "b", "a", "x", "ab", "c", "q"], ["<|im_start|>"]),
    "c": (["d", "e", "<s>", "x", "z", "yz", "c", "q"], ["<|im_start|>", "</s>"]),
}
PADDING_ROWS = {"base": 0, "a": 0, "c": 3}


def write_tokenizer(folder, tokens, added):
    """A tokenizer.json of the type BPE, with what transformers wants beside it."""
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [[t[0], t[1:]] for t in tokens if len(t) == 2 and t[0] in vocab and t[1:] in vocab]
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": vocab, "merges": merges}  # fmt: skip
    tokenizer = {"version": "1.0", "truncation": None, "padding": None,
                 "added_tokens": [{"id": len(tokens) + i, "content": t, **entry} for i, t in enumerate(added)],
                 "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
                 "model": model}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def write_token_models(folder):
    """base, a, c with vocabularies that differ, c with rows that belong to no token; base-tied, a-tied without a head."""
    random = np.random.RandomState(20240301)
    models = {}
    for model, (tokens, added) in VOCABULARIES.items():
        rows = len(tokens) + len(added) + PADDING_ROWS[model]
        tensors = {}
        for name, shape in tiny_shapes():
            if any(f"layers.{i}." in name for i in (2,)):
                continue
            shape = (rows, shape[1]) if name in ("lm_head.weight", "model.embed_tokens.weight") else shape
            tensors[name] = ("F32", random.standard_normal(shape).astype(np.float32))
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                  "rms_norm_eps": 1e-5, "max_position_embeddings": 64, **TINY, "num_hidden_layers": 2,
                  "vocab_size": rows}  # fmt: skip
        for tied in (False, True):
            name = f"{model}-tied" if tied else model
            own = {n: t for n, t in tensors.items() if not (tied and n == "lm_head.weight")}
            models[name] = tools.write_folder(folder / name, own, {**config, "tie_word_embeddings": tied})
            write_tokenizer(folder / name, tokens, added)
    return models


def by_token(folder):
    """The tensors of a model in float32, rows of the vocabulary in byte order of their tokens, then those of none; and the
    tokens. The order in which mergekit adds tokens is not the same in every run."""
    import tokenizers

    vocab = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    tokens = sorted(vocab)
    rows = [vocab[t] for t in tokens]
    found = {}
    for name, stored in tools.read_model(folder).items():
        value = tools.values(stored)
        if name.endswith(("lm_head.weight", "embed_tokens.weight", "wte.weight")):
            value = value[rows + [i for i in range(len(value)) if i not in set(rows)]]
        found[name] = value
    return found, tokens


def text_of(case, models, cases=CASES):
    text = cases[case]
    for key, folder in models.items():
        text = text.replace(f"{{{key}}}", str(folder))
    return text
