#!/usr/bin/env python3
"""Record what an independent reference program's spectral merges score, for test_scores.py: record_scores.py REFERENCE.py

expected/scores.json then holds, of every case, family and task, how many of the calibration samples (tokens) are right
and how many there are. REFERENCE.py is that of record_expected.py. How and when this was run: expected/README.md.
"""

import importlib.util
import json
import pathlib
import sys

import tools

CASES = {  # case: (function of the reference, its arguments)
    "tsv_m": ("spectral", ("tsv_m", 1.0)),
    "iso_c alpha=1.5": ("spectral", ("iso_c", 1.5)),
    "opcm mode=block": ("opcm", (0.5, "block")),
    "opcm mode=paper": ("opcm", (0.5, "paper")),
}


def samples(family, name):
    """How many scores a task has: images, or tokens that have one before them."""
    expected = json.loads((tools.MODELS / family / "expected.json").read_text())["tasks"][name]["cal"]
    return expected.get("n") or expected["tokens"]


def main(path):
    sys.path.insert(0, str(pathlib.Path(path).parent))
    spec = importlib.util.spec_from_file_location("reference", path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    found = {}
    for family in tools.TASKS:
        models = reference.Family(str(tools.MODELS / family))
        for case, (function, arguments) in CASES.items():
            merged = getattr(reference, function)(models, *arguments)
            counts = {}
            for task in models.tasks:
                total = samples(family, task)
                counts[task] = [round(models.score(merged, "calibration", task)["accuracy"] * total), total]
            found.setdefault(case, {})[family] = counts
            print(case, family, counts)
    lines = ",\n".join(
        f" {json.dumps(case)}: {{\n"
        + ",\n".join(f"  {json.dumps(f)}: {json.dumps(c)}" for f, c in families.items())
        + "\n }"
        for case, families in found.items()
    )
    (pathlib.Path(__file__).parent / "expected/scores.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1])
