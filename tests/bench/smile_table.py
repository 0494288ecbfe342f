#!/usr/bin/env python3
"""Table for docs/smile.md: (kg, k) against accuracy (or nll) and size on an example family.

    NPS_BUILDDIR=build/tests python tests/bench/smile_table.py [FAMILY [accuracy|nll]]     (default: examples/models/digits-vit)
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BUILD = Path(os.environ.get("NPS_BUILDDIR", "build/tests"))
ROUTERS, RANKS = (4, 16, 32), (4, 8, 16, 32)
SCORE = sys.argv[2] if len(sys.argv) > 2 else "accuracy"


def run(program, *words):
    done = subprocess.run([str(BUILD / program), *map(str, words)], check=True, capture_output=True, text=True)
    return done.stdout


def averages(family, model, tasks, heads):
    """Mean score over the tasks on calibration and test data."""
    words = [w for t in tasks for w in ("--group", t)] + [w for t in tasks if heads for w in ("--head", f"{t}={family / t}")]
    files = [family / f"{part}.h5" for part in ("calibration", "test")]
    return [json.loads(run("nps-eval", model, "--data", f, *words, "--json"))["average"][SCORE] for f in files]


def parameters(model):
    shown = json.loads(run("nps-inspect", model, "--json"))
    return shown["parameters"], shown.get("experts", {}).get("parameters", 0)


def main():
    family = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/models/digits-vit").resolve()
    tasks = list(json.loads((family / "expected.json").read_text())["tasks"])
    each = [averages(family, family / t, [t], False) for t in tasks]
    print("| kg | k | calibration | test | parameters, of all models' |\n|---|---|---|---|---|")
    print("| | the base | {:.4f} | {:.4f} | {:.1f} % |".format(*averages(family, family / "base", tasks, True), 100 / len(tasks)))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "smile.h5"
        for k in RANKS:
            for kg in ROUTERS:
                config = {"merge_method": "smile", "base_model": str(family / "base"), "parameters": {"kg": kg, "k": k},
                          "models": [{"model": str(family / t)} for t in tasks]}  # fmt: skip
                path = Path(folder) / "config.yaml"
                path.write_text(json.dumps(config))
                run("nps-merge", path, out, "--force", "--quiet")
                base, experts = parameters(out)
                size = 100 * (base + experts) / (base * len(tasks))
                print("| {} | {} | {:.4f} | {:.4f} | {:.1f} % |".format(kg, k, *averages(family, out, tasks, True), size), flush=True)
    print("| | all models | {:.4f} | {:.4f} | 100.0 % |".format(*(sum(x) / len(tasks) for x in zip(*each))))


if __name__ == "__main__":
    main()
