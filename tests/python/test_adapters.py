"""A base with an adapter: as the peft library merges it, or as NumPy does."""

import json
import shutil

import numpy as np
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
    result = tools.run(tools.CONVERT, f"{tmp_path}/base+{tmp_path}/adapter", tmp_path / "out", ranks=2)
    assert result.code == 0, result
    got = {n: tools.values(t) for n, t in tools.read_model(tmp_path / "out").items()}
    base = tools.read_model(tmp_path / "base")
    assert got.keys() >= base.keys() and got.keys() <= want.keys()
    moved = 0
    for name, x in got.items():
        bound = 2e-6 * np.abs(want[name]).max()
        assert np.abs(x - want[name]).max() <= bound, name
        moved += name not in base or np.abs(x - tools.values(base[name])).max() > 1000 * bound
    assert moved >= 2
