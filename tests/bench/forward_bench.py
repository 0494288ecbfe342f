#!/usr/bin/env python3
"""Time forward passes of nps-eval beside PyTorch's (eager mode, transformers) on the same cores and batches.

    make bench-forward FORWARD_ARGS='[--families vit,bert,llama] [--ranks 1,2] …'

Models of random weights at width 768, 12 layers, 12 heads are made by transformers: a ViT (224 × 224 pixels in patches of
16, inner width 3072, 10 classes), a BERT (rows of 256 tokens, inner width 3072, 10 classes) and a Llama (rows of 257 tokens,
inner width 2048, 32,000 tokens). nps-eval and PyTorch
take turns. nps-eval's seconds are those of a run with more batches less those of a run with one batch a rank, so that
starting and reading do not count; it makes scores besides logits. Seconds are medians, once by the clock and once of CPU time
of all ranks or threads, which other programs disturb less.
"""
import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    import h5py
    import numpy as np
    import torch
    import transformers
except ModuleNotFoundError as missing:
    sys.exit(f"forward_bench.py: {missing}: run it with the Python that `tests/venv.sh --path` names")

transformers.utils.logging.disable_progress_bar()
CLASSES, VOCABULARY, TOKENS, PIXELS = 10, 32000, 257, 224
BERT_TOKENS = 256
PEERS = ("eager", "sdpa")  # transformers' forms of attention; the second is its default


def make_vit(folder):
    config = transformers.ViTConfig(num_labels=CLASSES)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return transformers.ViTForImageClassification


def make_bert(folder):
    config = transformers.BertConfig(num_labels=CLASSES, vocab_size=VOCABULARY)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return transformers.BertForSequenceClassification


def make_llama(folder):
    config = transformers.LlamaConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, vocab_size=VOCABULARY,
                                      num_key_value_heads=12, intermediate_size=2048, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return transformers.LlamaForCausalLM


def make_data(family, samples, path):
    random = np.random.default_rng(1)
    labels = random.integers(0, CLASSES, samples, np.int32)
    with h5py.File(path, "w") as file:
        if family == "vit":
            inputs = random.standard_normal((samples, 3, PIXELS, PIXELS), np.float32)
            file["task/inputs"] = inputs
        else:
            inputs = random.integers(0, VOCABULARY, (samples, BERT_TOKENS if family == "bert" else TOKENS), np.int32)
            file["task/input_ids"] = inputs
        if family != "llama":
            file["task/labels"] = labels
    return torch.from_numpy(inputs), torch.from_numpy(labels).long()


def evaluate(options, model, data, ranks):
    """Seconds by the clock and of CPU time, and the nll, of a run of nps-eval."""
    command = [*shlex.split(os.environ.get("MPIRUN") or "mpirun"), "-np", str(ranks), str(options.program), str(model), "--data", str(data), "--batch",
               str(options.batch), "--json"]
    environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1",
                       OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1")
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([seconds, after.ru_utime - before.ru_utime]), json.loads(out)["average"]["nll"]


def pass_forward(model, family, inputs, batch):
    """Seconds by the clock and of CPU time of forward passes in PyTorch; a row's last token is only asked for."""
    begin, before = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for part in inputs.split(batch):
            given = {"vit": part, "bert": part.long(), "llama": part[:, :-1].long()}[family]
            logits = model(given).logits
    return np.array([time.perf_counter() - begin, time.process_time() - before]), logits, part


def check_nll(family, logits, part, labels, nll):
    """The same scores, where all samples are in one batch."""
    if len(part) != len(labels):
        return
    if family == "llama":
        logits, labels = logits.flatten(0, 1), part[:, 1:].flatten().long()
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    if abs(expected - nll) > 1e-3:
        sys.exit(f"forward_bench.py: {family}: nll {nll} instead of {expected}")


def measure(options, family, ranks, folder):
    """Median seconds a sample: [who][clock, CPU]."""
    kind = {"vit": make_vit, "bert": make_bert, "llama": make_llama}[family](folder / "model")
    few, many = options.batch * ranks, options.batch * ranks * (1 + options.batches)
    inputs, labels = make_data(family, few, folder / "few.h5")
    make_data(family, many, folder / "many.h5")
    torch.set_num_threads(ranks)
    peers = {name: kind.from_pretrained(folder / "model", attn_implementation=name).eval() for name in PEERS}
    seconds = {name: [] for name in ("nps-eval", *peers)}
    for _ in range(options.runs):
        once, nll = evaluate(options, folder / "model", folder / "few.h5", ranks)
        more, _ = evaluate(options, folder / "model", folder / "many.h5", ranks)
        seconds["nps-eval"].append((more - once) / (many - few))
        for name, model in peers.items():
            took, logits, part = pass_forward(model, family, inputs, options.batch)
            check_nll(family, logits, part, labels, nll)
            seconds[name].append(took / few)
    return {name: np.median(np.array(rows), axis=0) for name, rows in seconds.items()}


def parse():
    p = argparse.ArgumentParser(description="Time forward passes of nps-eval beside PyTorch's.")
    p.add_argument("--families", default="vit,bert,llama", help="some of vit,bert,llama")
    p.add_argument("--ranks", default="1,2", help="ranks of nps-eval, and threads of PyTorch (default %(default)s)")
    p.add_argument("--batch", type=int, default=8, help="samples in a forward pass (default %(default)s)")
    p.add_argument("--batches", type=int, default=2, help="that are timed, on each rank (default %(default)s)")
    p.add_argument("--runs", type=int, default=3, help="of each, in turn (default %(default)s)")
    options = p.parse_args()
    options.program = Path(os.environ.get("NPS_BUILDDIR", ".")) / "nps-eval"
    if not options.program.exists():
        p.error(f"{options.program} was not found: set NPS_BUILDDIR to the folder of the build")
    return options


def main():
    options = parse()
    torch.manual_seed(1)
    print(f"Milliseconds a sample, medians of {options.runs} runs in turn, batches of {options.batch}; PyTorch "
          f"{torch.__version__}, transformers {transformers.__version__}:\n")
    print("| model | ranks, or threads | | nps-eval | " + " | ".join(f"PyTorch, {name}" for name in PEERS) + " | "
          + " | ".join(f"{name} ÷ nps-eval" for name in PEERS) + " |")
    print("|---" * (4 + 2 * len(PEERS)) + "|")
    for family in options.families.split(","):
        for ranks in map(int, options.ranks.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                found = measure(options, family, ranks, Path(folder))
            for i, kind in enumerate(("clock", "CPU")):
                own = found["nps-eval"][i]
                cells = [f"{1000 * own:.0f}"] + [f"{1000 * found[name][i]:.0f}" for name in PEERS]
                cells += [f"{found[name][i] / own:.2f}" for name in PEERS]
                print(f"| {family} | {ranks} | {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
