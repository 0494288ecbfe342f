#!/usr/bin/env python3
"""Fine-tune all-MiniLM-L6-v2 for the tasks of minilm_texts.py, and make calibration and test data.

    minilm_tune.py FOLDER [--task NAME]... [--steps N] [--base MODEL]

reads FOLDER/texts and writes a Hugging Face model FOLDER/models/TASK for each task, FOLDER/calibration.h5 and
FOLDER/test.h5 (with tools/prepare_data.py). FOLDER/models/base is the model as it comes, a link.

A task's classifier is found first, on the features of the base, and stays as it is while the rest is fine-tuned: the base
then has a head for every task, and what fine-tuning changes is in the body alone. One thread, a fixed seed; no sample of
calibration or test data is looked at.
"""
import argparse
import json
import os
import runpy
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from minilm_fetch import fetch_model

PREPARE = Path(__file__).resolve().parents[2] / "tools/prepare_data.py"
LENGTH, BATCH, STEPS, RATE, PROBED = 24, 16, 120, 2e-4, 1000


def read_texts(folder, task, split):
    with open(folder / f"texts/{task}-{split}.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["text"] for row in rows], torch.tensor([row["label"] for row in rows])


def tokens(tokenizer, texts):
    return tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")


def features(model, tokenizer, texts):
    model.eval()
    with torch.no_grad():
        parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        return torch.cat([model.base_model(**tokens(tokenizer, part)).pooler_output for part in parts])


def find_classifier(model, tokenizer, texts, labels):
    """Logistic regression on the pooler's output, with a little weight decay."""
    x, classifier = features(model, tokenizer, texts[:PROBED]), model.classifier
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(classifier(x), labels[:PROBED]) + 1e-3 * classifier.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    classifier.requires_grad_(False)


def fine_tune(model, tokenizer, texts, labels, steps):
    """AdamW; the rate rises over a tenth of the steps and falls linearly."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / (0.1 * steps), (steps - s) / (0.9 * steps)))
    order, total = torch.randperm(len(texts)).tolist(), 0.0
    for step in range(steps):
        chosen = [order[(step * BATCH + i) % len(order)] for i in range(BATCH)]
        loss = model(**tokens(tokenizer, [texts[i] for i in chosen]), labels=labels[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        total += loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"  {step + 1} steps, mean loss {total / (step + 1):.3f}", flush=True)


def make_model(base, folder, task, classes, steps):
    torch.manual_seed(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, **names)
    texts, labels = read_texts(folder, task, "train")
    print(f"{task}: {len(texts)} texts, {len(classes)} classes", flush=True)
    find_classifier(model, tokenizer, texts, labels)
    fine_tune(model, tokenizer, texts, labels, steps)
    model.save_pretrained(folder / "models" / task)
    tokenizer.save_pretrained(folder / "models" / task)


def make_data(base, folder, tasks):
    """As prepare_data.py makes it, in this process, which has loaded transformers already."""
    prepare, own = runpy.run_path(str(PREPARE)), sys.argv
    for split in ("calibration", "test"):
        out = folder / f"{split}.h5"
        out.unlink(missing_ok=True)
        for task in tasks:
            words = ["--tokenizer", base, "--out", out, "--group", task, "--length", LENGTH]
            sys.argv = [str(word) for word in [PREPARE, *words, folder / f"texts/{task}-{split}.jsonl"]]
            prepare["main"]()
    sys.argv = own


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", action="append", help="only this task's model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--base", type=Path, help="another model than all-MiniLM-L6-v2")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    base = (given.base or fetch_model()).resolve()
    tasks = json.loads((given.folder / "texts/classes.json").read_text())
    (given.folder / "models").mkdir(exist_ok=True)
    if not (given.folder / "models/base").exists():
        (given.folder / "models/base").symlink_to(base)
    make_data(base, given.folder, tasks)
    for task in given.task or tasks:
        make_model(base, given.folder, task, tasks[task], given.steps)


if __name__ == "__main__":
    main()
