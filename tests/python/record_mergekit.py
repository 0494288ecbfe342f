#!/usr/bin/env python3
"""Record what mergekit makes of the tiny models, for test_mergekit.py: writes expected/mergekit.npz."""

import pathlib
import subprocess
import sys
import tempfile

import mergekit_cases
import numpy as np
import tools

HERE = pathlib.Path(__file__).parent


def main():
    recorded = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models = mergekit_cases.write_tiny_models(folder)
        words = []
        for case in mergekit_cases.CASES:
            words += [
                tools.write_config(folder / f"{case}.yaml", mergekit_cases.text_of(case, models)),
                folder / f"out {case}",
            ]
        subprocess.run([sys.executable, HERE / "run_mergekit.py", *words], check=True)
        for case in mergekit_cases.CASES:
            tensors = tools.read_model(folder / f"out {case}")
            assert {dtype for dtype, _ in tensors.values()} == {"F32"}
            recorded[case] = np.concatenate([tensors[n][1].reshape(-1) for n, _ in mergekit_cases.tiny_shapes()])
    np.savez_compressed(HERE / "expected/mergekit.npz", **recorded)


if __name__ == "__main__":
    main()
