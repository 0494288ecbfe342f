#!/usr/bin/env python3
"""Table for docs/smile.md: (kg, k) against accuracy (or nll) and size on an example family.

    NPS_BUILDDIR=build/tests python tests/bench/smile_table.py [FAMILY] [--by nll] [--kg 16 …] [--k 32 …]
"""
import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

BUILD = Path(os.environ.get("NPS_BUILDDIR", "build/tests"))


def run(program, *words):
    done = subprocess.run([str(BUILD / program), *map(str, words)], check=True, capture_output=True, text=True)
    return done.stdout


def averages(family, model, tasks, heads, by):
    """Mean score over the tasks on calibration and test data."""
    words = [w for t in tasks for w in ("--group", t)] + [w for t in tasks if heads for w in ("--head", f"{t}={family / t}")]
    files = [family / f"{part}.h5" for part in ("calibration", "test")]
    return [json.loads(run("nps-eval", model, "--data", f, *words, "--json"))["average"][by] for f in files]


def parameters(model):
    shown = json.loads(run("nps-inspect", model, "--json"))
    return shown["parameters"], shown.get("experts", {}).get("parameters", 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", type=Path, nargs="?", default=Path("examples/models/digits-vit"))
    parser.add_argument("--by", choices=("accuracy", "nll"), default="accuracy")
    parser.add_argument("--kg", type=int, nargs="+", default=[4, 16, 32], help="directions of a router")
    parser.add_argument("--k", type=int, nargs="+", default=[4, 8, 16, 32], help="rank of an expert")
    options = parser.parse_args()
    family, by = options.family.resolve(), options.by
    tasks = list(json.loads((family / "expected.json").read_text())["tasks"])
    each = [averages(family, family / t, [t], False, by) for t in tasks]
    print("| kg | k | calibration | test | parameters, of all models' |\n|---|---|---|---|---|")
    print("| | the base | {:.4f} | {:.4f} | {:.1f} % |".format(*averages(family, family / "base", tasks, True, by), 100 / len(tasks)))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "smile.h5"
        for k in options.k:
            for kg in options.kg:
                config = {"merge_method": "smile", "base_model": str(family / "base"), "parameters": {"kg": kg, "k": k},
                          "models": [{"model": str(family / t)} for t in tasks]}  # fmt: skip
                path = Path(folder) / "config.yaml"
                path.write_text(json.dumps(config))
                run("nps-merge", path, out, "--force", "--quiet")
                base, experts = parameters(out)
                size = 100 * (base + experts) / (base * len(tasks))
                print("| {} | {} | {:.4f} | {:.4f} | {:.1f} % |".format(kg, k, *averages(family, out, tasks, True, by), size), flush=True)
    print("| | all models | {:.4f} | {:.4f} | 100.0 % |".format(*(sum(x) / len(tasks) for x in zip(*each))))


if __name__ == "__main__":
    main()
