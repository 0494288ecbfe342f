"""Configs that mergekit and this program are both given, word for word, and the tiny models of the recorded ones."""

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

TINY = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
            vocab_size=16, head_dim=8)  # fmt: skip


def tiny_shapes():
    c = TINY
    h, inner, kv = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * c["head_dim"]
    yield "lm_head.weight", (c["vocab_size"], h)
    yield "model.embed_tokens.weight", (c["vocab_size"], h)
    for i in range(c["num_hidden_layers"]):
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


def text_of(case, models):
    text = CASES[case]
    for key, folder in models.items():
        text = text.replace(f"{{{key}}}", str(folder))
    return text
