#!/usr/bin/env python3
"""Record what mergekit makes of the tiny models, for test_mergekit.py: writes expected/mergekit.npz.

record_mergekit.py [CASE …]: all, or the cases named of CASES and SLICES, the others staying as they are."""

import json
import pathlib
import subprocess
import sys
import tempfile

import mergekit_cases
import numpy as np
import tools

HERE = pathlib.Path(__file__).parent


def run(folder, cases, models):
    """Merge all cases in one process; gives {case: output folder}."""
    words, found = [], {}
    for number, case in enumerate(cases):
        found[case] = folder / f"out {number}"
        text = mergekit_cases.text_of(case, models, cases)
        words += [tools.write_config(folder / f"{number}.yaml", text), found[case]]
    subprocess.run([sys.executable, HERE / "run_mergekit.py", *words], check=True)
    return found


def record_methods(cases, recorded):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models = mergekit_cases.write_tiny_models(folder)
        for case, out in run(folder, cases, models).items():
            tensors = tools.read_model(out)
            assert {dtype for dtype, _ in tensors.values()} == {"F32"}
            layers = len([n for n in tensors if "q_proj" in n])
            recorded[case] = np.concatenate([tensors[n][1].reshape(-1) for n, _ in mergekit_cases.tiny_shapes(layers)])


def record_vocabularies(recorded):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        models = mergekit_cases.write_token_models(folder)
        for case, out in run(folder, mergekit_cases.TOKENS, models).items():
            tensors, tokens = mergekit_cases.by_token(out)
            recorded[f"tokens of {case}"] = np.array(json.dumps(tokens))
            for tensor, value in tensors.items():
                recorded[f"{case}: {tensor}"] = value


def main():
    names = sys.argv[1:]
    recorded = dict(np.load(HERE / "expected/mergekit.npz")) if names else {}
    cases = {**mergekit_cases.CASES, **mergekit_cases.SLICES}
    record_methods({case: cases[case] for case in names or cases}, recorded)
    if not names:
        record_vocabularies(recorded)
    np.savez_compressed(HERE / "expected/mergekit.npz", **recorded)


if __name__ == "__main__":
    main()
