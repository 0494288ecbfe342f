#!/usr/bin/env python3
"""Transfer of single tasks, each beside general tasks that the base could do before, on both example families: a table of
accuracies and H-scores for docs/search.md.

For each task: the base, the fully fine-tuned model, and what `nps.application: transfer` makes of it, searched by H-score on
calibration samples, scored on test samples that no search has seen. General tasks are all others of the family.

    NPS_BUILDDIR=build/tests python tests/bench/transfer_study.py [--seeds 1 2 3] [--density 0.1] [--only FAMILY/TASK …]
"""
import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import yaml
from search_study import BUILD, ROOT, run

MODELS = ROOT / "examples/models"
TASKS = ["digits-vit/parity", "digits-vit/invert", "digits-vit/rot90", "digits-vit/noise", "bytes-llama/legal", "bytes-llama/french"]


def tasks_of(family):
    return list(json.loads((MODELS / family / "expected.json").read_text())["tasks"])


def config_of(family, task, density, seed):
    data = str(MODELS / family / "calibration.h5")
    tasks = [{"name": t, "data": data, **({} if t == task else {"head": str(MODELS / family / t)})} for t in tasks_of(family)]
    return {
        "merge_method": "nps", "base_model": str(MODELS / family / "base"), "models": [{"model": str(MODELS / family / task)}],
        "dtype": "float32", "seed": seed, "nps": {"application": "transfer", "density": density},
        "search": {"generations": 5, "population": 8}, "fitness": {"objective": "h_score", "tasks": tasks},
    }  # fmt: skip


def scores(family, model, task):
    """Test accuracy on the task, mean on the general ones, H-score."""
    heads = [word for t in tasks_of(family) for word in ("--head", f"{t}={MODELS / family / t}")]
    heads = heads if family == "digits-vit" else []
    found = json.loads(run([BUILD / "nps-eval", model, "--data", MODELS / family / "test.h5", "--json", *heads]))["tasks"]
    own, general = found[task]["accuracy"], np.mean([s["accuracy"] for t, s in found.items() if t != task])
    return own, general, 2 * own * general / (own + general)


def transferred(family, task, density, seed, folder):
    config, out = folder / "config.yaml", folder / "out.h5"
    config.write_text(yaml.safe_dump(config_of(family, task, density, seed)))
    run([BUILD / "nps-merge", config, out, "--force", "--quiet"])
    return scores(family, out, task)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--only", nargs="+", default=TASKS)
    options = parser.parse_args()
    print("| task | model | the task | general tasks | H-score |\n|---|---|---|---|---|")
    for name in options.only:
        family, task = name.split("/")
        rows = {"base": MODELS / family / "base", "fine-tuned": MODELS / family / task}
        for row, model in rows.items():
            print("| {} | {} | {:.4f} | {:.4f} | {:.4f} |".format(name, row, *scores(family, model, task)), flush=True)
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                found = transferred(family, task, options.density, seed, Path(folder))
            print("| {} | transfer, seed {} | {:.4f} | {:.4f} | {:.4f} |".format(name, seed, *found), flush=True)


if __name__ == "__main__":
    main()
