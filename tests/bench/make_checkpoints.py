#!/usr/bin/env python3
"""Write large synthetic checkpoints of real Llama shapes, for benchmarks of speed and memory. The weights mean nothing.

    make_checkpoints.py FOLDER [--shape 160m|1b|3b|8b] [--models 3] [--seed 0]

Makes FOLDER/base and FOLDER/tuned-1 …: bfloat16 safetensors in shards of 2 GB. The base is N(0, 0.02); a fine-tuned
model is the base, an update of rank 8 and a sparse update, so that magnitudes and spectra look like fine-tuning. Needs
NumPy only. Tensors are made in blocks of rows, so little memory is used whatever the shape.
"""
import argparse
import json
import math
import multiprocessing
import os
import struct
from pathlib import Path

import numpy as np

SHAPES = {
    "160m": dict(hidden=768, layers=12, heads=12, kv_heads=12, intermediate=2048, vocabulary=32000, tied=True),
    "1b": dict(hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192, vocabulary=32000, tied=True),
    "3b": dict(hidden=3072, layers=28, heads=24, kv_heads=8, intermediate=8192, vocabulary=64000, tied=True),
    "8b": dict(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocabulary=128256, tied=False),
}
SHARD_BYTES = 2e9
BLOCK_ELEMENTS = 1 << 24
RANK = 8


def tensors(shape):
    """Names and shapes of all tensors, in file order."""
    hidden, inner = shape["hidden"], shape["intermediate"]
    kv = shape["kv_heads"] * (hidden // shape["heads"])
    layer = {
        "input_layernorm": (hidden,), "mlp.down_proj": (hidden, inner), "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden), "post_attention_layernorm": (hidden,), "self_attn.k_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden), "self_attn.q_proj": (hidden, hidden), "self_attn.v_proj": (kv, hidden),
    }
    yield "model.embed_tokens.weight", (shape["vocabulary"], hidden)
    for i in range(shape["layers"]):
        for name, dims in layer.items():
            yield f"model.layers.{i}.{name}.weight", dims
    yield "model.norm.weight", (hidden,)
    if not shape["tied"]:
        yield "lm_head.weight", (shape["vocabulary"], hidden)


def bfloat16(x):
    """The nearest bfloat16 of finite float32 values, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def normal(random, shape, deviation):
    return random.standard_normal(shape, np.float32) * np.float32(deviation)


def blocks(seed, index, dims, model):
    """The values of a tensor, block by block of rows. Model 0 is the base."""
    if len(dims) == 1:
        ones = np.ones(dims, np.float32)
        yield ones if model == 0 else ones + normal(np.random.default_rng([seed, index, 0, model]), dims, 1e-2)
        return
    rows, columns = dims
    right = np.random.default_rng([seed, index, model]).standard_normal((RANK, columns), np.float32)
    step = max(1, BLOCK_ELEMENTS // columns)
    for block, first in enumerate(range(0, rows, step)):
        shape = (min(step, rows - first), columns)
        x = normal(np.random.default_rng([seed, index, block, 0]), shape, 0.02)
        if model > 0:
            random = np.random.default_rng([seed, index, block, model])
            x += normal(random, (shape[0], RANK), 4e-4) @ right
            changed = random.integers(0, x.size, x.size // 50)
            x.reshape(-1)[changed] += normal(random, changed.size, 4e-3)
        yield x


def shards(shape):
    """The tensors as [(index, name, dims)] a shard."""
    groups, size = [[]], 0
    for index, (name, dims) in enumerate(tensors(shape)):
        length = 2 * math.prod(dims)
        if size and size + length > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append((index, name, dims))
        size += length
    return groups


def write_shard(path, group, seed, model):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for _, name, dims in group:
        end = at + 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index, _, dims in group:
            for block in blocks(seed, index, dims, model):
                file.write(bfloat16(block).tobytes())
    return at


def model_config(shape):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape["hidden"], "intermediate_size": shape["intermediate"],
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "head_dim": shape["hidden"] // shape["heads"],
        "vocab_size": shape["vocabulary"], "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": shape["tied"], "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
    }


def write_model(folder, shape_name, seed, model):
    """Write one model. Model 0 is the base."""
    shape = SHAPES[shape_name]
    folder.mkdir(parents=True, exist_ok=True)
    groups, weight_map, total = shards(shape), {}, 0
    for k, group in enumerate(groups):
        name = f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        total += write_shard(folder / name, group, seed, model)
        weight_map.update({tensor: name for _, tensor, _ in group})
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(model_config(shape), indent=1))


def write_family(folder, shape_name, models, seed=0):
    """Write the base and the fine-tuned models, as many at a time as there are cores."""
    names = ["base"] + [f"tuned-{i}" for i in range(1, models + 1)]
    jobs = [(Path(folder) / name, shape_name, seed, model) for model, name in enumerate(names)]
    with multiprocessing.Pool(min(len(jobs), len(os.sched_getaffinity(0)))) as pool:
        pool.starmap(write_model, jobs, chunksize=1)


def main():
    parser = argparse.ArgumentParser(description="Write synthetic checkpoints of real Llama shapes.")
    parser.add_argument("folder")
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--models", type=int, default=3, help="fine-tuned models beside the base")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_family(options.folder, options.shape, options.models, options.seed)


if __name__ == "__main__":
    main()
