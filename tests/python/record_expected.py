#!/usr/bin/env python3
"""Record what an independent reference program merges, for test_oracle.py: record_expected.py REFERENCE.py

REFERENCE.py FAMILY METHOD key=value … --save OUT.safetensors merges all fine-tuned models of a family in float64 and
saves float32. expected/reference-FAMILY.json then holds for every case and tensor: the SHA-256 of the float32 values
(-0 taken as 0), their float64 sum, and three elements. How and when this was run: expected/README.md.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tools

CASES = {
    "base": ["base"],
    "linear": ["linear"],
    "task_arithmetic lambda=0.3": ["task_arithmetic", "lambda=0.3"],
    "task_arithmetic lambda=1": ["task_arithmetic", "lambda=1"],
    "ties scope=tensor density=0.2 lambda=1": ["ties", "scope=tensor", "density=0.2", "lambda=1"],
    "ties scope=model density=0.2 lambda=1": ["ties", "scope=model", "density=0.2", "lambda=1"],
    "ties scope=model density=0.05 lambda=0.7": ["ties", "scope=model", "density=0.05", "lambda=0.7"],
}


def describe(array):
    flat = array.astype(np.float32).reshape(-1) + np.float32(0)
    picked = [0, flat.size // 3, flat.size - 1]
    return {
        "sha256": hashlib.sha256(flat.tobytes()).hexdigest(),
        "sum": float(flat.astype(np.float64).sum()),
        "elements": [float(flat[i]) for i in picked],
    }


def main(reference):
    for family in tools.TASKS:
        cases = {}
        for name, words in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                out = f"{folder}/out.safetensors"
                subprocess.run(
                    [sys.executable, reference, str(tools.MODELS / family), *words, "--save", out], check=True
                )
                tensors = tools.read_safetensors(out)
            cases[name] = {tensor: describe(array) for tensor, (_, array) in sorted(tensors.items())}
        path = pathlib.Path(__file__).parent / f"expected/reference-{family}.json"
        lines = [
            f" {json.dumps(case)}: {{\n"
            + ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in tensors.items())
            + "\n }"
            for case, tensors in cases.items()
        ]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1])
