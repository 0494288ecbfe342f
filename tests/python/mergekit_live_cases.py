"""Configs with slices and vocabularies for several architectures, and the tiny models that they merge."""

import json

import mergekit_cases
import numpy as np
import tools

WIDTH, INNER, LAYERS = 16, 24, 3

CONFIGS = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_key_value_heads": 1, "head_dim": 8},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2, "head_dim": 8,
                "sliding_window": 32},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 1,
              "use_sliding_window": False, "layer_types": ["full_attention"] * LAYERS},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2,
             "n_inner": INNER, "n_positions": 20},
}  # fmt: skip
LLAMA_LIKE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": INNER,
              "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5}  # fmt: skip


def llama_shapes(family, rows, tied):
    kv = CONFIGS[family]["num_key_value_heads"] * WIDTH // 2
    yield "model.embed_tokens.weight", (rows, WIDTH)
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{p}{name}.weight", (WIDTH,)
        for name, size in (("q", WIDTH), ("k", kv), ("v", kv)):
            yield f"{p}self_attn.{name}_proj.weight", (size, WIDTH)
            if family == "qwen2":
                yield f"{p}self_attn.{name}_proj.bias", (size,)
        yield p + "self_attn.o_proj.weight", (WIDTH, WIDTH)
        for name in ("gate", "up"):
            yield f"{p}mlp.{name}_proj.weight", (INNER, WIDTH)
        yield p + "mlp.down_proj.weight", (WIDTH, INNER)
    yield "model.norm.weight", (WIDTH,)
    if not tied:
        yield "lm_head.weight", (rows, WIDTH)


def gpt2_shapes(rows):
    yield "transformer.wte.weight", (rows, WIDTH)
    yield "transformer.wpe.weight", (20, WIDTH)
    for i in range(LAYERS):
        p = f"transformer.h.{i}."
        for name, shape in (("attn.c_attn", (WIDTH, 3 * WIDTH)), ("attn.c_proj", (WIDTH, WIDTH)), ("mlp.c_fc", (WIDTH, INNER)),
                            ("mlp.c_proj", (INNER, WIDTH))):  # fmt: skip
            yield f"{p}{name}.weight", shape
            yield f"{p}{name}.bias", shape[1:]
        for name in ("ln_1", "ln_2"):
            yield f"{p}{name}.weight", (WIDTH,)
            yield f"{p}{name}.bias", (WIDTH,)
    yield "transformer.ln_f.weight", (WIDTH,)
    yield "transformer.ln_f.bias", (WIDTH,)


# Per model: the tokenizer's own tokens; added tokens with their ids, some inside of the former as Llama has them; rows of the
# embeddings. q is an ordinary token of one model and an added one of another. long has tokens beyond its rows.
VOCABULARIES = {
    "base": (["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", "ab", "cd"], {"<s>": 1, "</s>": 2, "<pad>": 10}, 11),
    "a": (["<unk>", "<s>", "</s>", "b", "a", "x", "ab", "c", "q"], {"<s>": 1, "</s>": 2, "<|im_start|>": 9, "<|im_end|>": 10}, 11),
    "c": (["<s>", "d", "e", "x", "z", "yz", "y", "c"], {"<s>": 0, "<|im_end|>": 8, "q": 9, "</s>": 10}, 14),
    "long": (["<unk>", "<s>", "</s>", "a", "c", "e", "d", "ea", "cd", "w"], {"<s>": 1, "<late>": 10}, 9),
}  # fmt: skip


def write_tokenizer(folder, tokens, added, kind):
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    if kind == "BPE":
        vocab = {token: i for i, token in enumerate(tokens)}
        merges = [[t[0], t[1]] for t in tokens if len(t) == 2 and t[0] in vocab and t[1] in vocab]
        model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                 "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                 "vocab": vocab, "merges": merges}  # fmt: skip
    else:
        model = {"type": "Unigram", "unk_id": 0, "vocab": [[t, -1.5 - i] for i, t in enumerate(tokens)], "byte_fallback": False}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None,
                 "added_tokens": [{"id": i, "content": t, **entry} for t, i in added.items()],
                 "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
                 "model": model}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
              "added_tokens_decoder": {str(i): {"content": t, **entry} for t, i in added.items()}}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_models(folder, family, tied=False, dtype="F32", kind="BPE"):
    """base, a, c, long, with vocabularies of their own; a and c lie near the base in all but their vocabularies."""
    random = np.random.RandomState(20240303)
    tied, models, layers = tied or family == "gpt2", {}, {}
    for model, (tokens, added, rows) in VOCABULARIES.items():
        tensors = {}
        for name, shape in gpt2_shapes(rows) if family == "gpt2" else llama_shapes(family, rows, tied):
            value = random.standard_normal(shape)
            if name in layers and layers[name].shape == shape:
                value = layers[name] + 0.1 * value
            layers.setdefault(name, value)
            tensors[name] = (dtype, tools.narrow(value, dtype))
        config = {**CONFIGS[family], **({} if family == "gpt2" else LLAMA_LIKE), "vocab_size": rows,
                  "tie_word_embeddings": tied, "bos_token_id": added["<s>"], "eos_token_id": None}  # fmt: skip
        models[model] = tools.write_folder(folder / model, tensors, config)
        write_tokenizer(folder / model, tokens, added, kind)
    return models


# name: (what write_models() makes, the config)
CASES = {
    "overlapping layers": (dict(family="llama"), """\
merge_method: passthrough
base_model: {base}
slices:
  - sources:
      - model: {base}
        layer_range: [0, 2]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: mlp, value: [0.5, 1.25]}
            - {filter: "*", value: 1.0}
  - sources:
      - {model: {a}, layer_range: [1, 3]}
  - sources:
      - {model: {base}, layer_range: [0, 3]}
  - sources:
      - {model: {c}, layer_range: [2, 3], parameters: {scale: [0.25, 0.75]}}
parameters:
  scale:
    - {filter: self_attn.k_proj, value: [1, 0.3, 2]}
    - {value: 1.5}
tokenizer:
  source: union
  pad_to_multiple_of: 8
dtype: float32
"""),
    "gradients and filters of mistral": (dict(family="mistral"), """\
merge_method: linear
base_model: {base}
slices:
  - sources:
      - model: {base}
        layer_range: [0, 2]
        parameters: {weight: [{filter: self_attn, value: [0, 1, 0.25]}, {filter: mlp, value: 0.75}]}
      - {model: {a}, layer_range: [1, 3]}
    parameters: {weight: [{filter: layers.1.mlp.up, value: 0.875}, {filter: norm, value: [0.1, 0.7]}]}
  - sources:
      - {model: {base}, layer_range: [2, 3], parameters: {weight: [0.2, 0.6]}}
      - {model: {c}, layer_range: [0, 1]}
parameters:
  weight: [0.125, 0.4, 0.5]
  normalize: false
tokenizer_source: union
dtype: float32
"""),
    "attention of one, mlp of another": (dict(family="qwen2"), """\
merge_method: linear
base_model: {base}
models:
  - model: {base}
    parameters: {weight: [{filter: self_attn, value: 1}, {filter: mlp, value: 0}, {value: 0.5}]}
  - model: {a}
    parameters: {weight: [{filter: self_attn, value: 0}, {filter: mlp, value: 1}, {value: 0.5}]}
tokenizer_source: base
dtype: float32
"""),
    "layers of qwen2": (dict(family="qwen2"), """\
merge_method: passthrough
base_model: {base}
slices:
  - sources: [{model: {base}, layer_range: [1, 2]}]
  - sources: [{model: {base}, layer_range: [1, 3], parameters: {scale: [{filter: bias, value: 0.5}, {value: 1}]}}]
dtype: float32
"""),
    "ties over slices of gpt2": (dict(family="gpt2"), """\
merge_method: ties
base_model: {base}
slices:
  - sources:
      - {model: {base}, layer_range: [0, 2]}
      - {model: {a}, layer_range: [0, 2], parameters: {weight: 0.7, density: [0.2, 0.9]}}
      - {model: {c}, layer_range: [1, 3], parameters: {weight: {filter: attn, value: 0.4}}}
  - sources:
      - {model: {base}, layer_range: [1, 3]}
      - {model: {c}, layer_range: [0, 2], parameters: {weight: 0.25}}
      - {model: {a}, layer_range: [1, 3]}
parameters: {weight: 0.5, density: 0.6}
tokenizer: {source: union}
dtype: float32
"""),
    "frankenmerge of gpt2": (dict(family="gpt2"), """\
merge_method: passthrough
base_model: {a}
slices:
  - sources: [{model: {a}, layer_range: [0, 3]}]
  - sources:
      - model: {c}
        layer_range: [1, 3]
        parameters: {scale: [{filter: attn.c_proj, value: 0.0}, {filter: mlp.c_proj, value: 0.0}, {value: 1.0}]}
dtype: float32
"""),
    "slices without layers": (dict(family="llama"), """\
merge_method: passthrough
slices:
  - sources: [{model: {a}, layer_range: [0, 0], parameters: {scale: [0.5, 2]}}]
  - sources: [{model: {base}, layer_range: [0, 2]}]
  - sources: [{model: {a}, layer_range: [3, 3], parameters: {scale: [{filter: norm, value: [0.75, 3]}, {value: 1}]}}]
dtype: float32
"""),
    "slerp over slices, tied": (dict(family="llama", tied=True), """\
merge_method: slerp
base_model: {base}
slices:
  - sources:
      - {model: {base}, layer_range: [0, 2]}
      - {model: {a}, layer_range: [1, 3]}
  - sources:
      - {model: {base}, layer_range: [1, 2]}
      - {model: {a}, layer_range: [2, 3]}
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.3}]
tokenizer_source: {a}
dtype: float32
"""),
    "a base of every slice": (dict(family="llama", tied=True), """\
merge_method: task_arithmetic
modules:
  default:
    slices:
      - sources:
          - {model: {a}, layer_range: [0, 1]}
          - {model: {base}, layer_range: [0, 1], parameters: {weight: 0.9}}
        base_model: {a}
      - sources:
          - {model: {base}, layer_range: [0, 3]}
          - {model: {c}, layer_range: [0, 3], parameters: {weight: [0.1, 0.6, -0.3]}}
        base_model: {base}
        parameters: {weight: 0.2}
    parameters: {lambda: 0.8}
parameters: {weight: 0.5}
tokenizer: {source: union, pad_to_multiple_of: 16}
dtype: float32
"""),
    "single tokens": (dict(family="mistral"), """\
merge_method: linear
base_model: {base}
models:
  - {model: {base}, parameters: {weight: 0.5}}
  - {model: {a}, parameters: {weight: [0.3, 0.9]}}
  - {model: {c}, parameters: {weight: 0.2}}
tokenizer:
  source: {a}
  pad_to_multiple_of: 7
  tokens:
    "a": {source: {base}}
    "c": {source: {c}, force: true}
    "</s>": {source: {kind: model_token, model: {base}, token: "<s>"}, force: true}
    "<|im_end|>": {source: {kind: model_token, model: {c}, token_id: 12}}
    "<|one|>": {source: {kind: zero}}
    "<|two|>": {source: {kind: model_token, model: {a}, token: "q"}}
dtype: float32
"""),
    "unigrams": (dict(family="llama", kind="Unigram"), """\
merge_method: task_arithmetic
base_model: {base}
models:
  - {model: {a}, parameters: {weight: 0.3}}
  - {model: {c}, parameters: {weight: -0.2}}
tokenizer_source: union
dtype: float32
"""),
    "a base with more tokens than rows": (dict(family="llama"), """\
merge_method: linear
base_model: {long}
models:
  - {model: {long}, parameters: {weight: 0.5}}
  - {model: {base}, parameters: {weight: 0.4}}
tokenizer_source: union
dtype: float32
"""),
    "rounded at the end": (dict(family="llama"), """\
merge_method: linear
base_model: {base}
slices:
  - sources:
      - {model: {base}, layer_range: [0, 3], parameters: {weight: 0.7}}
      - {model: {a}, layer_range: [0, 3], parameters: {weight: 0.4}}
tokenizer_source: union
dtype: float32
out_dtype: bfloat16
"""),
    "bits of bfloat16": (dict(family="mistral", dtype="BF16"), """\
merge_method: passthrough
base_model: {a}
slices:
  - sources: [{model: {a}, layer_range: [0, 2]}]
  - sources: [{model: {c}, layer_range: [0, 3]}]
  - sources: [{model: {a}, layer_range: [1, 3]}]
tokenizer_source: union
dtype: bfloat16
chat_template: chatml
"""),
    "nearswap": (dict(family="llama"), """\
merge_method: nearswap
base_model: {base}
models:
  - model: {a}
parameters: {t: [{filter: mlp, value: [0.01, 0.05]}, {value: 0.02}]}
tokenizer_source: union
dtype: float32
"""),
    "nuslerp of task vectors": (dict(family="llama"), """\
merge_method: nuslerp
base_model: {base}
models:
  - {model: {a}, parameters: {weight: [0.2, 0.9]}}
  - {model: {c}, parameters: {weight: 0.4}}
parameters: {nuslerp_row_wise: true}
tokenizer_source: union
dtype: float32
"""),
    "nuslerp of models": (dict(family="mistral"), """\
merge_method: nuslerp
models:
  - {model: {a}, parameters: {weight: 0.3}}
  - {model: {c}, parameters: {weight: [{filter: mlp, value: -0.1}, {value: 0.7}]}}
tokenizer_source: union
dtype: float32
"""),
    "nuslerp of rows": (dict(family="llama"), """\
merge_method: nuslerp
models:
  - {model: {a}, parameters: {weight: 0.3}}
  - {model: {c}, parameters: {weight: 0.5}}
parameters: {nuslerp_flatten: false}
tokenizer_source: union
dtype: float32
"""),
    "model_stock of rows": (dict(family="mistral"), """\
merge_method: model_stock
base_model: {base}
models:
  - model: {a}
  - model: {c}
parameters: {filter_wise: true}
tokenizer_source: union
dtype: float32
"""),
    "multislerp of task vectors": (dict(family="mistral"), """\
merge_method: multislerp
base_model: {base}
models:
  - {model: {a}, parameters: {weight: 0.8}}
  - {model: {c}, parameters: {weight: [0.1, 0.6]}}
parameters: {normalize_weights: false}
tokenizer_source: union
dtype: float32
"""),
    "multislerp of models": (dict(family="llama"), """\
merge_method: multislerp
models:
  - {model: {base}, parameters: {weight: 0.8}}
  - {model: {a}, parameters: {weight: 0.5}}
  - {model: {c}, parameters: {weight: [0.1, 0.6]}}
tokenizer_source: union
dtype: float32
"""),
    "karcher: the base counts": (dict(family="llama"), """\
merge_method: karcher
base_model: {base}
models:
  - model: {a}
  - model: {c}
parameters: {max_iter: 20}
tokenizer_source: union
dtype: float32
"""),
    "model_stock": (dict(family="gpt2"), """\
merge_method: model_stock
base_model: {base}
models:
  - model: {base}
  - model: {a}
  - model: {c}
tokenizer_source: union
dtype: float32
"""),
}  # fmt: skip

# All of mergekit_cases.py as well.
EARLIER = {
    **{name: (mergekit_cases.write_tiny_models, text) for name, text in mergekit_cases.SLICES.items()},
    **{f"tokens: {name}": (mergekit_cases.write_token_models, text) for name, text in mergekit_cases.TOKENS.items()},
    "tokens: tied base": (mergekit_cases.write_token_models, """\
merge_method: linear
base_model: {base-tied}
models:
  - {model: {base-tied}, parameters: {weight: 0.5}}
  - {model: {a}, parameters: {weight: 0.5}}
tokenizer_source: base
dtype: float32
"""),
}

# What comes after the layers: mergekit takes as many sources of it as the first slice has.
MORE_SOURCES = (mergekit_cases.write_tiny_models, """\
merge_method: linear
slices:
  - sources: [{model: {a}, layer_range: [0, 1]}]
  - sources:
      - {model: {b}, layer_range: [1, 3]}
      - {model: {c}, layer_range: [1, 3], parameters: {weight: 0.25}}
parameters: {weight: 0.5}
dtype: float32
""")

# Keys of config.json that differ, as docs/mergekit.md tells.
OTHER_CONFIG = {"tokens: tied base": {"tie_word_embeddings"}}
