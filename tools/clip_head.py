#!/usr/bin/env python3
"""Make a head that classifies with a CLIP model, of the features of texts: one text a class, or several.

    clip_head.py --model MODEL --out HEAD [--template TEXT]... CLASS...

HEAD is a folder that nps-eval takes with --head and a config with fitness.tasks[].head: classifier.weight has a row for each
CLASS, in the order given, whose number is its label in the calibration data. The row is the mean of the features of all
templates with the class put in the place of {}, each of length 1; made of length 1 again, and multiplied by exp(logit_scale).

MODEL is a folder of a CLIPModel with its tokenizer. Needs PyTorch, transformers and safetensors; nothing is downloaded.
"""
import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

try:
    import safetensors.torch
    import torch
    import transformers
except ModuleNotFoundError as error:
    sys.exit(f"clip_head.py: {error}; install it with: pip install {error.name}")


def fail(message):
    sys.exit(f"clip_head.py: error: {message}")


def arguments():
    head, _, tail = __doc__.partition("\n\n")
    p = argparse.ArgumentParser(description=head, epilog=tail, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("classes", nargs="+", metavar="CLASS")
    p.add_argument("--model", required=True, help="folder of a CLIPModel with its tokenizer")
    p.add_argument("--out", required=True, metavar="HEAD", type=Path, help="folder of the head, which must not be there")
    p.add_argument("--template", action="append", metavar="TEXT", help="text with {} for the class (a photo of a {}.)")
    given = p.parse_args()
    given.template = given.template or ["a photo of a {}."]
    for template in given.template:
        if "{}" not in template:
            p.error(f"--template {template!r}: expected a place for the class, {{}}")
    return given


def load(path):
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        if config.model_type != "clip":
            fail(f"{path}: model_type {config.model_type}, expected clip")
        model = transformers.CLIPModel.from_pretrained(path, dtype=torch.float32).eval()
        return model, transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def make_row(model, tokenizer, texts):
    """[projection]"""
    most = model.config.text_config.max_position_embeddings
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    if tokens["input_ids"].shape[1] > most:
        fail(f"{texts[0]!r} is longer than the {most} tokens that the model takes")
    pooled = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    return unit(unit(model.text_projection(pooled)).mean(0))


def main():
    given = arguments()
    if given.out.exists():
        fail(f"{given.out}: is there already")
    transformers.utils.logging.set_verbosity_error()
    model, tokenizer = load(given.model)
    with torch.no_grad():
        rows = [make_row(model, tokenizer, [t.replace("{}", name) for t in given.template]) for name in given.classes]
        weight = model.logit_scale.exp() * torch.stack(rows)
    given.out.mkdir(parents=True)
    tensors = {"classifier.weight": weight, "visual_projection.weight": model.visual_projection.weight.detach().clone()}
    safetensors.torch.save_file(tensors, given.out / "model.safetensors", metadata={"format": "pt"})
    labels = {"id2label": dict(enumerate(given.classes)), "label2id": {name: i for i, name in enumerate(given.classes)}}
    (given.out / "config.json").write_text(json.dumps({"model_type": "clip", **labels}, indent=2) + "\n")
    print(f"{given.out}: {len(rows)} classes, {len(given.template)} texts each, {weight.shape[1]} features")


if __name__ == "__main__":
    main()
