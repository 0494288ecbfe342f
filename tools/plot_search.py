#!/usr/bin/env python3
"""Draw what a search did, from a merged file (or a folder's findings.h5), as PNG files.

    plot_search.py merged.h5 [--out PREFIX]

PREFIX-history.png: fitness of every evaluation by generation, with the best so far, one panel a search.
PREFIX-subspaces.png: density and weight of every subspace (partition singular: band) of every model.
PREFIX-bands.png (partition singular): the spectrum of a typical matrix as it was and as it became, band by band.
Needs h5py, NumPy and matplotlib.
"""
import argparse
import math
import os
import sys

import h5py
import numpy as np

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ModuleNotFoundError as error:
    sys.exit(f"plot_search.py: {error}; install it with: pip install matplotlib")


def texts(values):
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def searches(file):
    """Every search of the file: (path, group)."""
    found = []

    def visit(name, item):
        if isinstance(item, h5py.Group) and "genome" in item:
            found.append((name, item))

    if "search" in file:
        file["search"].visititems(visit)
    return found


def grid(count):
    columns = min(4, count)
    return math.ceil(count / columns), columns


def draw_history(found, path):
    rows, columns = grid(len(found))
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    for axis, (name, group) in zip(axes.flat, found):
        total = group["total"][:].astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            accuracy = (group["correct"][:] / total).mean(1)
        generation, mean_of_all = group["generation"][:], group["candidate"][:] < 0
        best, start = int(group.attrs["best"]), int(group.attrs["start"])
        axis.plot(generation[~mean_of_all], accuracy[~mean_of_all], ".", alpha=0.4, label="candidate")
        axis.plot(generation[mean_of_all], accuracy[mean_of_all], "s", label="mean")
        axis.plot(generation, np.fmax.accumulate(accuracy), "-", linewidth=1, label="best so far")
        axis.plot(generation[best], accuracy[best], "*", markersize=12, label="chosen")
        axis.axhline(accuracy[start], linestyle=":", color="grey", label="start")
        axis.set(title=name, xlabel="generation", ylabel="accuracy, mean over tasks")
    axes.flat[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def is_singular(group):
    return "partition" in group.attrs and texts([group.attrs["partition"]])[0] == "singular"


def of_sum(group):
    return texts([group.attrs["of"]])[0] == "sum"


def shaped(sigma, kept, weight, flat):
    """Values of a matrix's triples: w·σ, flat: w·mean σ; 0 where they are not kept."""
    n, bands = len(sigma), len(weight)
    band = np.arange(n) * bands // n
    first = np.array([-(-m * n // bands) for m in range(bands)])  # of each band
    return np.where(np.arange(n) - first[band] < kept[band], weight[band] * (sigma.mean() if flat else sigma), 0)


def draw_bands(group, path):
    """Spectra averaged over all matrices, each divided by its largest value, over the position k/n."""
    models, weights, flat = texts(group.attrs["models"]), group["weight"][:], of_sum(group)
    bands, place = weights.shape[1], np.linspace(0, 1, 200, endpoint=False)
    rows, columns = grid(len(models))
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(models) :]:
        axis.axis("off")
    for i, (axis, model) in enumerate(zip(axes.flat, models)):
        before, after = [], []
        for name, values in group["sigma"].items():
            sigma = values[i]
            if sigma[0] == 0:
                continue
            at = (place * len(sigma)).astype(int)
            before.append(sigma[at] / sigma[0])
            after.append(shaped(sigma, group["kept_of"][name][i], weights[i], flat)[at] / sigma[0])
        for m in range(1, bands):
            axis.axvline(m / bands, color="lightgrey", linewidth=0.8)
        if before:
            axis.plot(place, np.mean(before, 0), "--", color="grey", label="σ")
            axis.plot(place, np.mean(after, 0), label="kept and weighed")
        axis.set(title=f"{model}, other tensors × {group['weight_rest'][i]:.2f}", xlabel="k / n", ylabel="σ / largest σ")
    axes.flat[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_subspaces(group, path):
    models = texts(group.attrs["models"])
    singular = is_singular(group)
    figure, axes = plt.subplots(1, 2, figsize=(12, 1.5 + 0.4 * len(models)), layout="constrained")
    for axis, key in zip(axes, ("density", "weight")):
        values = group[key][:]
        bound = max(1e-12, np.abs(values).max()) if key == "weight" else 1
        image = axis.imshow(values, aspect="auto", vmin=-bound if key == "weight" else 0, vmax=bound,
                            cmap="RdBu_r" if key == "weight" else "viridis")  # fmt: skip
        for i, row in enumerate(values):
            for m, value in enumerate(row):
                axis.text(m, i, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color="black",
                          bbox={"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 0.5})  # fmt: skip
        axis.set(title=f"{key} of each " + ("band" if singular else "subspace"),
                 xlabel="band, largest singular values first" if singular else "subspace, smallest magnitudes first")  # fmt: skip
        axis.set_xticks(range(values.shape[1]))
        axis.set_yticks(range(len(models)), models)
        figure.colorbar(image, ax=axis)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("merged", help="merged .h5 file, or a folder with findings.h5")
    parser.add_argument("--out", metavar="PREFIX", help="beginning of the files' names; default: that of the input")
    options = parser.parse_args()
    source = os.path.join(options.merged, "findings.h5") if os.path.isdir(options.merged) else options.merged
    prefix = options.out or os.path.splitext(options.merged.rstrip("/"))[0]
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        sys.exit(f"plot_search.py: {source}: {error}")
    with file:
        found = searches(file)
        if not found and "subspaces" not in file:
            sys.exit(f"plot_search.py: {source}: there is no search in this file")
        if found:
            draw_history(found, f"{prefix}-history.png")
            print(f"{prefix}-history.png")
        if "subspaces" in file:
            draw_subspaces(file["subspaces"], f"{prefix}-subspaces.png")
            print(f"{prefix}-subspaces.png")
            if is_singular(file["subspaces"]):
                draw_bands(file["subspaces"], f"{prefix}-bands.png")
                print(f"{prefix}-bands.png")


if __name__ == "__main__":
    main()
