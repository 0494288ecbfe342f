#!/usr/bin/env python3
"""A command evaluator for nps-merge that scores with transformers, on whatever device PyTorch has.

    fitness:
      evaluator: command
      command: [python3, examples/evaluators/score_transformers.py]
      tasks:
        - {name: plain, data: examples/models/digits-vit/calibration.h5}

The data are those of the native evaluators (docs/formats.md): images with labels, texts with one label each, or texts that a
language model goes on with. A task's head (its classifier) comes from its model.

Requests come on stdin and answers go to stdout, one JSON object a line; docs/command-evaluator.md has them field by field.
Needs torch, transformers, safetensors and h5py.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import traceback


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64, help="samples in a forward pass (default: 64)")
    parser.add_argument("--device", help="default: a GPU for each process in turn, where there are some, else the CPU")
    return parser.parse_args()


# ---- the model ---------------------------------------------------------------------------------------------------------


def choose_device():
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('NPS_GROUP', 0)) % torch.cuda.device_count()}"


def load_tensors(folder):
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def complete(tensors, head, prefix):
    """A candidate's tensors and those of a head's folder that it lacks. A body's names have the prefix, or have not, in either."""

    def named(name, others):
        return f"{prefix}.{name}" if prefix and name not in others and f"{prefix}.{name}" in others else name

    found = {named(name, head): tensor for name, tensor in tensors.items()}
    for name, tensor in head.items():
        found.setdefault(named(name, found), tensor)
    return found


def load_model(folder, head, kind):
    """The body of the candidate; what it lacks comes from the head's folder, as do the number and names of its classes."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(head if head and kind != "CausalLM" else folder)
    family = getattr(transformers, f"AutoModelFor{kind}")._model_mapping[type(config)]
    tensors = complete(load_tensors(folder), load_tensors(head) if head else {}, family.base_model_prefix)
    model, info = family.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    if info["missing_keys"]:  # they would be drawn at random
        raise ValueError(f"neither {folder} nor {head} has {', '.join(sorted(info['missing_keys']))}")
    return model.eval().float()


# ---- the data ----------------------------------------------------------------------------------------------------------


def load_data(about, request):
    """{name: array} of the samples that are asked for: all, or with held-out samples one of both parts."""
    import h5py

    with h5py.File(about["data"]) as file:
        data = {name: file[about["group"]][name][:] for name in file[about["group"]]}
    if "holdout" in request:
        h, count = request["holdout"], len(next(iter(data.values())))
        chosen = [i for i in range(count) if (math.floor((i + 1) * h) > math.floor(i * h)) == request["held"]]
        data = {name: array[chosen] for name, array in data.items()}
    return data


def kind_of(data):
    if "inputs" in data:
        return "ImageClassification"
    return "SequenceClassification" if "labels" in data and data["labels"].ndim == 1 else "CausalLM"


# ---- scores ------------------------------------------------------------------------------------------------------------


def logits_and_labels(model, kind, data, rows, device):
    """Logits [places][classes] and labels [places] of some samples; −100 where nothing is asked for."""
    import torch

    part = {name: torch.as_tensor(array[rows]).to(device) for name, array in data.items()}
    if kind == "ImageClassification":
        return model(pixel_values=part["inputs"]).logits, part["labels"].long()
    mask = part.get("attention_mask")
    logits = model(input_ids=part["input_ids"].long(), attention_mask=mask).logits
    if kind == "SequenceClassification":
        return logits, part["labels"].long()
    labels = part.get("labels", part["input_ids"]).long()[:, 1:].clone()
    if mask is not None:
        labels[mask[:, 1:] == 0] = -100
    return logits[:, :-1].flatten(0, 1), labels.flatten()


def score(model, kind, data, batch, device):
    import torch

    correct, total, nll = 0, 0, 0.0
    count = len(next(iter(data.values())))
    with torch.no_grad():
        for first in range(0, count, batch):
            logits, labels = logits_and_labels(model, kind, data, slice(first, first + batch), device)
            logits, labels = logits[labels != -100].double(), labels[labels != -100]
            correct += int((logits.argmax(1) == labels).sum())
            total += len(labels)
            nll += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return {"correct": correct, "total": total, "nll_sum": nll}


def answer(request, batch, device):
    scores = {}
    for task in request["tasks"]:
        about = request["about"][task]
        data = load_data(about, request)
        kind = kind_of(data)
        model = load_model(request["model"], about.get("head"), kind).to(device)
        scores[task] = score(model, kind, data, batch, device)
    reply = {"id": request["id"], "scores": scores}
    if "held" in request:
        reply["held"] = request["held"]
    return reply


def main():
    arguments = parse_arguments()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no answer
    device = arguments.device or choose_device()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = answer(request, arguments.batch, device)
        except Exception as error:  # this model counts as the worst, and the next one is another matter
            traceback.print_exc()
            reply = {"id": request["id"], "error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
