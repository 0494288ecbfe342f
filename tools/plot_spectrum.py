#!/usr/bin/env python3
"""Draw the singular values of a model's matrices, one panel a kind of matrix, one line a layer, as a PNG file.

    nps-inspect tuned --against base --spectrum 64 --json >spectrum.json
    plot_spectrum.py spectrum.json [--out spectrum.png]

Needs matplotlib.
"""
import argparse
import json
import math
import sys

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ModuleNotFoundError as error:
    sys.exit(f"plot_spectrum.py: {error}; install it with: pip install matplotlib")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="JSON of nps-inspect --spectrum")
    parser.add_argument("--out", default="spectrum.png")
    options = parser.parse_args()
    with open(options.file) as file:
        spectra = json.load(file).get("spectrum")
    if not spectra:
        sys.exit(f"plot_spectrum.py: {options.file} has no spectrum: was it made with --spectrum K --json?")
    kinds = list(dict.fromkeys(s["kind"] for s in spectra))
    columns = min(3, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3.2 * rows), squeeze=False)
    for panel in axes.flat[len(kinds) :]:
        panel.axis("off")
    for panel, kind in zip(axes.flat, kinds):
        members = [s for s in spectra if s["kind"] == kind]
        for i, s in enumerate(members):
            color = plt.cm.viridis(i / max(1, len(members) - 1))
            panel.plot(range(1, len(s["sigma"]) + 1), s["sigma"], color=color, linewidth=1)
        ranks = [s["effective_rank"] for s in members]
        panel.set_title(f"{kind}\neffective rank {min(ranks):.0f} to {max(ranks):.0f}", fontsize=8)
        if all(s["sigma"][-1] > 0 for s in members):
            panel.set_yscale("log")
        panel.set_xlabel("k")
        panel.set_ylabel("σ")
    figure.tight_layout()
    figure.savefig(options.out, dpi=120)
    print(options.out)


if __name__ == "__main__":
    main()
