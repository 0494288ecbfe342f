"""A command evaluator in NumPy: scores ViT classifiers on calibration data, float32, independent of the program and of
transformers. Requests come on stdin, answers go to stdout, one JSON object a line.

An argument, a JSON object, makes it misbehave: "faults" {id of a request: FAULT}, "always": FAULT, "some": FAULT where a hash of
the model says so, "while": a file, only while it is there, "one shot": it ends after each answer; "tell": a file for what it knows of itself; "cheap": scores are made up
of a hash of the model.
"""

import hashlib
import json
import math
import os
import pathlib
import shutil
import signal
import struct
import sys
import time

try:
    import h5py
    import numpy as np
except ImportError:  # enough for cheap scores, with python3 -S too
    pass


def erf(x):
    """Abramowitz and Stegun 7.1.26: within 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - poly * np.exp(-x * x))


def tensors_of(folder):
    raw = (pathlib.Path(folder) / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    found = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in tensor["data_offsets"])
        if tensor["dtype"] == "BF16":
            bits = np.frombuffer(raw[begin:end], np.uint16).astype(np.uint32) << np.uint32(16)
            values = bits.view(np.float32)
        else:
            values = np.frombuffer(raw[begin:end], {"F32": np.float32, "F16": np.float16}[tensor["dtype"]])
        found[name] = values.reshape(tensor["shape"]).astype(np.float32)
    return found


class Vit:
    def __init__(self, folder, head):
        self.config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        self.weights = {**{n: t for n, t in tensors_of(head).items() if n.startswith("classifier.")}, **tensors_of(folder)}

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, x):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        x = (x - mean) / np.sqrt(variance + np.float32(self.config["layer_norm_eps"]))
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, name, x):
        n, tokens, width = x.shape
        heads = self.config["num_attention_heads"]

        def split(part):
            y = self.linear(f"{name}.attention.{part}", x)
            return y.reshape(n, tokens, heads, width // heads).transpose(0, 2, 1, 3)

        q, k, v = split("query"), split("key"), split("value")
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32(math.sqrt(width // heads))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        y = (scores / scores.sum(-1, keepdims=True)) @ v
        return self.linear(f"{name}.output.dense", y.transpose(0, 2, 1, 3).reshape(n, tokens, width))

    def logits(self, images):
        w, p = self.weights, self.config["patch_size"]
        n, channels, height, width = images.shape
        patches = images.reshape(n, channels, height // p, p, width // p, p).transpose(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(n, (height // p) * (width // p), channels * p * p)
        kernel = w["vit.embeddings.patch_embeddings.projection.weight"]
        x = patches @ kernel.reshape(len(kernel), -1).T + w["vit.embeddings.patch_embeddings.projection.bias"]
        x = np.concatenate([np.repeat(w["vit.embeddings.cls_token"], n, 0), x], 1) + w["vit.embeddings.position_embeddings"]
        for i in range(self.config["num_hidden_layers"]):
            layer = f"vit.encoder.layer.{i}"
            x = x + self.attend(f"{layer}.attention", self.norm(f"{layer}.layernorm_before", x))
            y = self.linear(f"{layer}.intermediate.dense", self.norm(f"{layer}.layernorm_after", x))
            y = (y * 0.5 * (1 + erf(y.astype(np.float64) / math.sqrt(2)))).astype(np.float32)
            x = x + self.linear(f"{layer}.output.dense", y)
        return self.linear("classifier", self.norm("vit.layernorm", x)[:, 0])


def is_held(i, holdout):
    return math.floor((i + 1) * holdout) > math.floor(i * holdout)


CHEAP = False


def made_up(request, task):
    model = (pathlib.Path(request["model"]) / "model.safetensors").read_bytes()
    digest = hashlib.sha256(model + task.encode()).digest()
    return {"correct": digest[0] % 17, "total": 16, "nll_sum": digest[1] / 16}


def score(request, task):
    if CHEAP:
        return made_up(request, task)
    about = request["about"][task]
    with h5py.File(about["data"]) as file:
        images, labels = file[about["group"]]["inputs"][:], file[about["group"]]["labels"][:]
    if "holdout" in request:
        chosen = [i for i in range(len(labels)) if is_held(i, request["holdout"]) == request["held"]]
        images, labels = images[chosen], labels[chosen]
    logits = Vit(request["model"], about["head"]).logits(images).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return {"correct": int((logits.argmax(1) == labels).sum()), "total": len(labels), "nll_sum": float(nll.sum())}


def answer(request):
    reply = {"id": request["id"], "scores": {task: score(request, task) for task in request["tasks"]}}
    if "held" in request:
        reply["held"] = request["held"]
    return reply


def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def flood():
    while True:
        os.write(1, b"x" * 65536)


def spoiled(request, **changes):
    reply = answer(request)
    reply["scores"][request["tasks"][0]].update(changes)
    return json.dumps(reply) + "\n"


def raise_error():
    raise RuntimeError("the model is too good")


def hang_with_children():
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            break
    time.sleep(1000)


def remove_the_folder(request):
    reply = json.dumps(answer(request))
    shutil.rmtree(pathlib.Path(request["model"]).parent)
    write(reply + "\n")


def part_of(request):
    return json.dumps(answer(request))[:30]


def without_a_task(request):
    reply = answer(request)
    del reply["scores"][request["tasks"][0]]
    return json.dumps(reply) + "\n"


def without_nll(request):
    reply = answer(request)
    del reply["scores"][request["tasks"][0]]["nll_sum"]
    return json.dumps(reply) + "\n"


FAULTS = {
    "die": lambda request: raise_error(),
    "exit": lambda request: sys.exit(3),
    "crash": lambda request: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda request: time.sleep(1000),
    "hang with children": lambda request: hang_with_children(),
    "nonsense": lambda request: write("Loading checkpoint shards: 100%\n"),
    "binary": lambda request: write("\0\1\2\x7f\n"),
    "list": lambda request: write("[1, 2, 3]\n"),
    "half a line": lambda request: (write(part_of(request)), sys.exit(0)),
    "half a line, then silence": lambda request: (write(part_of(request)), time.sleep(1000)),
    "flood": lambda request: flood(),
    "noise": lambda request: [os.write(2, b"warning: nothing is wrong\n" * 4096) for _ in range(64)] + [write(spoiled(request))],
    "close": lambda request: (os.close(1), time.sleep(1000)),
    "another id": lambda request: write(json.dumps({**answer(request), "id": request["id"] + 1}) + "\n"),
    "nan": lambda request: write(spoiled(request, nll_sum=math.nan)),
    "huge": lambda request: write(spoiled(request).replace('"nll_sum": ', '"nll_sum": 1e999, "x": ')),
    "too many": lambda request: write(spoiled(request, correct=10**6)),
    "no total": lambda request: write(spoiled(request, total=0)),
    "another total": lambda request: write(spoiled(request, total=32)),
    "text": lambda request: write(spoiled(request, nll_sum="0.1")),
    "a task too few": lambda request: write(without_a_task(request)),
    "error": lambda request: write(json.dumps({"id": request["id"], "error": "I do not like it"}) + "\n"),
    "no nll": lambda request: write(without_nll(request)),
    "forgetful": lambda request: write(json.dumps({"id": request["id"], "scores": answer(request)["scores"]}) + "\n"),
    "two answers": lambda request: write(spoiled(request) * 2),
    "remove the folder": remove_the_folder,
    "value": lambda request: write(json.dumps({"id": request["id"], "scores": {
        task: {"value": score(request, task)["nll_sum"], "total": 2} for task in request["tasks"]}}) + "\n"),
}  # fmt: skip


def fault_of(behaviour, request):
    if "while" in behaviour and not os.path.exists(behaviour["while"]):
        return None
    if "some" in behaviour:
        model = (pathlib.Path(request["model"]) / "model.safetensors").read_bytes()
        if hashlib.sha256(model).digest()[0] % 3 == 0:
            return behaviour["some"]
    return behaviour.get("faults", {}).get(str(request["id"]), behaviour.get("always"))


def tell(path, request):
    """One line a request: who and where this process is."""
    with open(path, "a") as file:
        about = {"pid": os.getpid(), "environment": dict(os.environ), "files": len(os.listdir("/proc/self/fd")),
                 "request": request, "folder": sorted(os.listdir(request["model"])), "group": os.getpgid(0)}  # fmt: skip
        file.write(json.dumps(about) + "\n")


def main():
    global CHEAP
    behaviour = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    CHEAP = behaviour.get("cheap", False)
    for line in sys.stdin:
        request = json.loads(line)
        if "tell" in behaviour:
            tell(behaviour["tell"], request)
        fault = fault_of(behaviour, request)
        if fault:
            sys.stderr.write(f"about to be bad: {fault}\n")
            sys.stderr.flush()
            FAULTS[fault](request)
        else:
            write(json.dumps(answer(request)) + "\n")
        if behaviour.get("one shot"):
            break


if __name__ == "__main__":
    main()
