"""What the tests of command evaluators share: configs whose command is vit_evaluator.py, and its processes."""

import json
import os
import pathlib
import socket
import sys

import tools

EVALUATOR = pathlib.Path(__file__).with_name("vit_evaluator.py")
FOLDERS = f"nps-merge-{socket.gethostname()}-*"


def by_command(config, shared, timeout=60, fitness=None, **behaviour):
    """Cheap scores need no packages, so that the process starts at once."""
    words = [sys.executable, *(["-S"] if behaviour.get("cheap") else []), str(EVALUATOR), json.dumps(behaviour)]
    more = {"evaluator": "command", "command": words, "timeout": timeout, "directory": str(shared), **(fitness or {})}
    return {**config, "fitness": {**config["fitness"], **more}}


def one_generation(few, population=4, **search):
    """The base, two models, then the start, and a generation of candidates for each of them."""
    return tools.small_search(few, stages=["prune"], generations=1, population=population, **search)


def processes_of(path):
    """Processes whose command line has a path in it."""
    found = []
    for cmdline in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(path).encode() in word for word in words) and int(cmdline.parent.name) != os.getpid():
            found.append(int(cmdline.parent.name))
    return found
