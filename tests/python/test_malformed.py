"""Malformed input of every kind: each case has its exit code and its message, once, and leaves nothing behind."""

import json
import os
import struct

import h5py
import numpy as np
import pytest
import tools

# Words of a program that fell over instead of saying what is wrong.
FALLEN = ["Traceback", "Segmentation", "HDF5-DIAG", "Assertion", "MPI_ABORT", "MPI_Abort", "core dumped", "signal 6",
          "signal 11", "stack smashing", "free():", "malloc"]  # fmt: skip

W = np.arange(12, dtype=np.float32).reshape(3, 4)
TENSORS = {"a.weight": ("F32", W), "b.weight": ("F32", W[0])}


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def good_models(folder):
    """base and x: what a case starts from."""
    tools.write_folder(folder / "base", TENSORS, {"model_type": "none"})
    tools.write_folder(folder / "x", {n: (t, w + 1) for n, (t, w) in TENSORS.items()}, {"model_type": "none"})


GOOD = """\
merge_method: task_arithmetic
base_model: base
models:
  - model: x
    parameters: {weight: 0.5}
dtype: float32
"""


def check(folder, code, *messages, config=GOOD, ranks=0, arguments=("c.yaml", "out.h5"), program=tools.MERGE):
    """Run where only the config and models are: exit code, message once, nothing written."""
    if config is not None:
        (folder / "c.yaml").write_bytes(config if isinstance(config, bytes) else config.encode())
    before = listing(folder)
    result = tools.run(program, *arguments, ranks=ranks, cwd=folder)
    assert result.code == code, result
    for message in messages:
        assert result.err.count(message) == 1, f"expected once: {message}\n{result}"
    errors = [line for line in result.err.splitlines() if ": error: " in line]
    assert errors and len(set(errors)) == len(errors), result
    assert not any(line.endswith(".") for line in errors), result
    assert not [word for word in FALLEN if word in result.out + result.err], result
    assert listing(folder) == before, f"left behind: {set(listing(folder)) - set(before)}"
    return result


# ---- configs -----------------------------------------------------------------------------------------------------------


def changed(old, new, text=GOOD):
    assert old in text
    return text.replace(old, new)


def added(line):
    return GOOD + line + "\n"


NPS = """\
merge_method: nps
base_model: base
models: [{model: x}]
dtype: float32
"""
TASKS = "fitness: {tasks: [{name: x, data: tasks.h5}]}\n"

CONFIGS = {
    "empty": ("", "c.yaml:1: the config is empty"),
    "only a comment": ("# nothing\n", "the config is empty"),
    "a list": ("- a\n- b\n", "c.yaml:1: expected a mapping with merge_method and models, found a list"),
    "a word": ("merge\n", "expected a mapping with merge_method and models, found the text 'merge'"),
    "not YAML": (changed("models:", "models: ["), "not YAML"),
    "a tab": (changed("  - model: x", "\t- model: x"), "c.yaml:4: tab used for indentation"),
    "not UTF-8": (added("").encode() + b"# \xff\xfe\n", "c.yaml:8: not a text in UTF-8"),
    "binary": (bytes(range(1, 255)), "not a text in UTF-8"),
    "a NUL": (GOOD.encode() + b'name: "a\\0b"\n', "a text with a NUL character"),
    "two documents": (GOOD + "---\n" + GOOD, "c.yaml:7: a second document starts"),
    "unknown alias": (changed("model: x", "model: *x"), "alias '*x' without an anchor"),
    "a tag": (changed("model: x", "model: !!python/object x"), "is not supported"),
    "aliases of aliases": ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p}]\n" for p, c in zip("abcdefgh", "bcdefghi")),
        "more than 1000000 values"),
    "very deep": ("a: " + "[" * 200 + "]" * 200, "nested deeper than 64 levels"),
    "repeated key": (added("dtype: float16"), "c.yaml:7: key 'dtype' is repeated, first on line 6"),
    "no method": (changed("merge_method: task_arithmetic\n", ""), "'merge_method' is missing"),
    "null method": (changed("task_arithmetic", ""), "'merge_method' is missing"),
    "misspelt method": (changed("task_arithmetic", "task_arithmatic"), "did you mean 'task_arithmetic'?"),
    "unknown method": (changed("task_arithmetic", "quux"), "c.yaml:1: unknown merge_method 'quux'"),
    "planned method": (changed("task_arithmetic", "fisher"), "merge_method 'fisher' is not built yet"),
    "method is a list": (changed("task_arithmetic", "[a]"), "merge_method: expected a text, found a list"),
    "no models": (GOOD.split("models:")[0], "'models' is missing"),
    "models empty": (GOOD.split("models:")[0] + "models: []\n", "models: expected a list of models, found an empty list"),
    "models a number": (GOOD.split("models:")[0] + "models: 3\n", "models: expected a list of models, found the number 3"),
    "model without model": (changed("- model: x", "- name: x"), "c.yaml:4: models.0: 'model' is missing"),
    "model a list": (changed("model: x", "model: [x]"), "models.0.model"),
    "misspelt key": (added("dtypes: float32"), "c.yaml:7: unknown key 'dtypes', did you mean 'dtype'?"),
    "unknown key": (added("qwertyuiop: 1"), "c.yaml:7: unknown key 'qwertyuiop'"),
    "misspelt key of a model": (changed("parameters:", "parametres:"), "unknown key 'parametres' in models.0, did you mean"),
    "key that lies elsewhere": (added("out_shard_size: 1B"), "did you mean 'output.shard_size'?"),
    "search of another method": (added("search: {generations: 3}"), "c.yaml:7: search: belongs to merge_method nps, this is task_arithmetic"),
    "slices": (added("slices: []"), "slices: expected a list of slices"),
    "nps of another method": (added("nps: {subspaces: 4}"), "c.yaml:7: nps: belongs to merge_method nps, this is task_arithmetic"),
    "fitness of another method": (added("fitness: {batch: 4}"), "c.yaml:7: fitness: belongs to merge_method nps, this is task_arithmetic"),
    "layer_range": (changed("- model: x", "- model: x\n    layer_range: [0, 2]"), "unknown key 'layer_range' in models.0"),
    "archive": (added("archive: {value_bits: 8}"), "c.yaml:7: archive: belongs to merge_method nps"),
    "misspelt parameter": (changed("weight", "wieght"), "c.yaml:5: unknown parameter 'wieght' of task_arithmetic, did you mean 'weight'?"),
    "missing parameter": (changed("{weight: 0.5}", "{}"), "task_arithmetic needs the parameter 'weight' for model 'x'"),
    "parameter a text": (changed("0.5", "much"), "parameter 'weight' must be a number, found 'much'"),
    "parameter NaN": (changed("0.5", ".nan"), "models.0.parameters.weight: expected a finite number"),
    "parameter infinite": (changed("0.5", "-.inf"), "expected a finite number"),
    "parameter overflows": (changed("0.5", "1e999"), "expected a finite number"),
    "parameter null": (changed("0.5", ""), "models.0.parameters.weight: expected a value, found nothing"),
    "parameter an empty list": (changed("0.5", "[]"), "found an empty list"),
    "parameter of mixed list": (changed("0.5", "[1, a]"), "expected a list of numbers, found the text 'a' in it"),
    "parameter with a bad filter": (changed("0.5", "[{filtre: a, value: 1}]"), "did you mean 'filter'?"),
    "filter without value": (changed("0.5", "[{filter: a}]"), "found no value"),
    "filters that leave out a tensor": (changed("0.5", "[{filter: a.weight, value: 1}]"), "(tensor b.weight has none)"),
    "filters in filters": (changed("0.5", "[{value: [{value: 1}]}]"), "filters inside filters are not supported"),
    "density above 1": (changed("task_arithmetic", "ties") + "parameters: {density: 1.5}\n", "parameter 'density' must lie in [0, 1], found 1.5"),
    "density below 0": (changed("task_arithmetic", "dare_ties") + "parameters: {density: -1}\n", "parameter 'density' must lie in [0, 1]"),
    "unknown scope": (changed("task_arithmetic", "ties") + "parameters: {scope: layer}\n", "parameter 'scope' must be one of tensor, model, found 'layer'"),
    "unknown rescale": (changed("task_arithmetic", "dare_ties") + "parameters: {rescale: maybe}\n", "must be one of false, true, expectation"),
    "normalize a number": (added("parameters: {normalize: 3}"), "parameter 'normalize' must be one of"),
    "lambda of a model": (changed("weight: 0.5", "weight: 0.5, lambda: 2"), "parameter 'lambda' holds for all models"),
    "densities that differ over a model": (changed("task_arithmetic", "ties") + "parameters: {scope: model, density: [{filter: a, value: 0.1}, {value: 0.2}]}\n", "density must be the same for all tensors"),
    "expectation of nothing": (changed("task_arithmetic", "dare_linear") + "parameters: {rescale: expectation, density: 0}\n", "rescale: expectation divides by the density"),
    "probabilities above 1": (changed("task_arithmetic", "della") + "parameters: {density: 0.9}\n", "della, tensor a.weight: density ± epsilon must lie within (0, 1), found 0.9 ± 0.15"),
    "probabilities below 0": (changed("task_arithmetic", "della_linear") + "parameters: {density: 0.25, epsilon: 0.25}\n", "found 0.25 ± 0.25"),
    "weights that add up to 0": ("merge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}, {model: base, parameters: {weight: -1}}]\n", "the weights add up to 0"),
    "no base": (changed("base_model: base\n", ""), "task_arithmetic needs base_model"),
    "only the base": (changed("model: x", "model: base"), "task_arithmetic needs at least 1 model"),
    "slerp of three": ("merge_method: slerp\nbase_model: base\nparameters: {t: 0.5}\nmodels: [{model: x}, {model: y}, {model: base}]\n", "slerp takes"),
    "passthrough of two": ("merge_method: passthrough\nmodels: [{model: x}, {model: base}]\n", "passthrough takes"),
    "unknown dtype": (changed("float32", "float8"), "c.yaml:6: dtype: expected float32, float16, bfloat16 or float64, found the text 'float8'"),
    "unknown out_dtype": (added("out_dtype: 32"), "out_dtype: expected float32"),
    "seed negative": (added("seed: -1"), "seed: expected an integer from 0"),
    "seed a fraction": (added("seed: 1.5"), "seed: expected an integer"),
    "seed too large": (added("seed: 18446744073709551616"), "seed: expected an integer"),
    "memory a word": (added("resources: {memory_per_rank: lots}"), "resources.memory_per_rank: expected auto or a size such as 2GiB, found the text 'lots'"),
    "memory zero": (added("resources: {memory_per_rank: 0}"), "resources.memory_per_rank: expected auto or a size"),
    "memory too small": (added("resources: {memory_per_rank: 1MiB}"), "this merge needs at least"),
    "unknown unit": (added("output: {shard_size: 5XB}"), "output.shard_size: expected a size such as 5GB"),
    "unknown key of output": (added("output: {paht: a}"), "unknown key 'paht' in output, did you mean 'path'?"),
    "unknown head": (added("output: {head: y}"), "output.head: expected the name of a listed model, found 'y'"),
    "repeated name": (GOOD.replace("dtype", "  - {model: base, name: x}\ndtype").replace("- model: x", "- model: x\n    name: x"), "models.1.name: 'x' is the name of models.0 already"),
    "misspelt key of nps": (NPS + "nps: {subspace: 4}\n", "c.yaml:5: unknown key 'subspace' in nps, did you mean 'subspaces'?"),
    "too many subspaces": (NPS + "nps: {subspaces: 300}\n", "nps.subspaces: expected a whole number from 1 to 256, found the number 300"),
    "an unknown partition": (NPS + "nps: {partition: spectral}\n", "nps.partition: expected "),
    "too few subspace weights": (NPS + "nps: {weights: [1, 2]}\n", "nps.weights: expected 8 numbers, one a subspace, found 2"),
    "subspace weights of nobody": (NPS + "nps: {subspaces: 1, weights: {quux: [1]}}\n", "nps.weights.quux: expected the name of a listed model, found 'quux'"),
    "subspace weights and a search": (NPS + "nps: {subspaces: 1, weights: [1]}\nsearch: {}\n" + TASKS, "c.yaml:5: nps.weights: the stages prune and joint search them"),
    "scope under parameters": (NPS + "parameters: {scope: tensor}\n", "parameter 'scope' belongs under nps.scope"),
    "search without tasks": (NPS + "search: {generations: 3}\n", "c.yaml:5: search: needs fitness.tasks"),
    "search without an evaluator": (NPS + "search: {}\nfitness: {evaluator: none}\n", "c.yaml:5: search: needs an evaluator"),
    "prune without a task": (NPS + "search: {stages: [prune]}\n" + changed("name: x", "name: z", TASKS), "search.stages: prune needs a task for every model, 'x' has none"),
    "stages in disorder": (NPS + "search: {stages: [fuse, prune]}\n" + TASKS, "search.stages: expected [prune], [fuse], [prune, fuse] or [joint], found [fuse, prune]"),
    "no generations": (NPS + "search: {generations: 0}\n" + TASKS, "search.generations: expected a whole number from 1"),
    "bounds in disorder": (NPS + "search: {bounds: {weight: [1, 0]}}\n" + TASKS, "search.bounds.weight: expected [lower, upper] with lower < upper, found [1, 0]"),
    "start out of bounds": (NPS + "search: {start: {weight: 7}}\n" + TASKS, "search.start.weight: 7 lies outside of the bounds [-5, 5]"),
    "race": (NPS + "search: {race: true}\n" + TASKS, "search.race: true is not built yet"),
    "no command": (NPS + changed("{tasks", "{evaluator: command, tasks", TASKS), "fitness.command: is missing, expected [program, arguments, …]"),
    "everything held out": (NPS + changed("{tasks", "{holdout: 1, tasks", TASKS), "fitness.holdout: expected a number below 1"),
    "task without data": (NPS + "fitness: {tasks: [{name: x}]}\n", "fitness.tasks.0: 'data' is missing"),
    "task of an unlisted model": (NPS + changed("data", "model: quux, data", TASKS), "fitness.tasks.0.model: expected the name of a listed model, found 'quux'"),
    "transfer of several models to one path": (changed("model: x}", "model: x}, {model: y}", NPS) + "nps: {application: transfer}\noutput: {path: out.h5}\n", "output.path: transfer writes one output a model, expected {name} in the path"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_config(case, tmp_path):
    good_models(tmp_path)
    tools.copy_folder(tmp_path / "x", tmp_path / "y")
    config, message = CONFIGS[case]
    check(tmp_path, 2, message, config=config)


def test_config_problems_are_listed_together(tmp_path):
    good_models(tmp_path)
    config = (
        changed("{weight: 0.5}", "{weight: 0.5}\n    nmae: y")
        + "seed: -3\nout_dtype: int8\nsearch: {}\nparameterz: {}\n"
    )
    result = check(tmp_path, 2, "'nmae'", "seed:", "out_dtype:", "search: belongs to merge_method nps", "'parameterz'", config=config)
    assert result.err.count("error:") == 5 and "5 problems" in result.err


# ---- safetensors files -------------------------------------------------------------------------------------------------


def entry(dtype="F32", shape=(3, 4), begin=0, end=48):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


B = entry(shape=(4,), begin=48, end=64)


def safetensors(header, data=64, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def headers(**tensors):
    return {"a.weight": entry(), "b.weight": B, **tensors}


FILES = {
    "empty": (b"", "it has 0 bytes, expected at least 8"),
    "seven bytes": (bytes(7), "it has 7 bytes"),
    "only a length": (struct.pack("<Q", 100), "is truncated: the header alone takes 108 bytes, the file has 8"),
    "an absurd length": (safetensors(headers(), length=2**63 - 1), "its header claims 9223372036854775807 bytes"),
    "a length that overflows": (safetensors(headers(), length=2**64 - 1), "its header claims 18446744073709551615 bytes"),
    "length 0": (safetensors(b"", length=0), "model.safetensors: "),
    "no JSON": (safetensors(b"x" * 64), "its header does not start with '{'"),
    "broken JSON": (safetensors(b'{"a.weight": '), "x/model.safetensors: header"),
    "a list": (safetensors(b"[1, 2, 3]"), "its header does not start with '{'"),
    "not UTF-8": (safetensors(b'{"a\xff": 1}'), "x/model.safetensors: header"),
    "a repeated name": (safetensors(b'{"a": 1, "a": 1}'), "x/model.safetensors: header"),
    "deep JSON": (safetensors(b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}"), "x/model.safetensors: header"),
    "no tensors": (safetensors({}, 0), "has no tensors"),
    "truncated data": (safetensors(headers(), 60), "is truncated: the header promises"),
    "no data": (safetensors(headers(), 0), "is truncated: the header promises"),
    "data behind the end": (safetensors(headers(), 70), "has 6 bytes after the last tensor"),
    "unknown type": (safetensors(headers(c=entry("Q4"))), "tensor c: unknown type 'Q4'"),
    "a type that is a number": (safetensors(headers(c=entry(7))), "tensor c: dtype: expected a string"),
    "negative extent": (safetensors(headers(c=entry(shape=(-3, 4)))), "tensor c: shape: expected non-negative integers"),
    "extent a fraction": (safetensors(headers(c=entry(shape=(1.5, 4)))), "tensor c: shape: expected non-negative integers"),
    "shape too large": (safetensors(headers(c=entry(shape=(2**40, 2**40)))), "is too large"),
    "bytes too many": (safetensors(headers(c=entry(shape=(2**61, 2)))), "is too large"),
    "nine dimensions": (safetensors(headers(c=entry(shape=(1,) * 9, end=4))), "tensor c: has 9 dimensions"),
    "shape a text": (safetensors(headers(c={"dtype": "F32", "shape": "3", "data_offsets": [0, 4]})), "tensor c: shape: expected a list"),
    "span too short": (safetensors(headers(c=entry(end=44))), "takes 48 bytes, its data_offsets span 44"),
    "ends before it begins": (safetensors(headers(c=entry(begin=48, end=0))), "data_offsets [48, 0] are no range"),
    "negative offset": (safetensors(headers(c=entry(begin=-48, end=0))), "data_offsets [-48, 0] are no range"),
    "offset beyond all": (safetensors(headers(c=entry(begin=2**63 - 1 - 48, end=2**63 - 1))), "are no range"),
    "one offset": (safetensors(headers(c={"dtype": "F32", "shape": [1], "data_offsets": [0]})), "data_offsets: expected two integers"),
    "no offsets": (safetensors(headers(c={"dtype": "F32", "shape": [1]})), "expected exactly dtype, shape and data_offsets"),
    "an extra key": (safetensors(headers(c={**entry(), "x": 1})), "expected exactly dtype, shape and data_offsets"),
    "tensor a number": (safetensors(headers(c=3)), "tensor c: expected exactly"),
    "empty name": (safetensors({"": entry(), "b.weight": B}), "a tensor has an empty name"),
    "overlap": (safetensors({"a.weight": entry(), "b.weight": entry(shape=(4,), begin=40, end=56)}, 56), "tensors a.weight and b.weight overlap"),
    "same bytes twice": (safetensors({"a.weight": entry(), "b.weight": entry()}, 48), "overlap"),
    "a hole": (safetensors({"a.weight": entry(), "b.weight": entry(shape=(4,), begin=56, end=72)}, 72), "8 bytes before tensor b.weight belong to no tensor"),
    "metadata a list": (safetensors({"__metadata__": [], **headers()}), "__metadata__: expected an object"),
    "metadata of numbers": (safetensors({"__metadata__": {"a": 1}, **headers()}), "__metadata__: a: expected a string"),
    "another shape": (safetensors({"a.weight": entry(shape=(4, 3)), "b.weight": B}), "tensor a.weight has shape [4, 3], expected [3, 4] as in base"),
    "fewer dimensions": (safetensors({"a.weight": entry(shape=(12,)), "b.weight": B}), "tensor a.weight has shape [12], expected [3, 4]"),
    "a tensor missing": (safetensors({"a.weight": entry()}, 48), "x: lacks tensor b.weight of the base"),
    "integers for floats": (safetensors({"a.weight": entry("I32"), "b.weight": B}), "tensor a.weight has type I32, in base F32"),
    "fp8": (safetensors({"a.weight": entry("F8_E4M3", end=12), "b.weight": entry(shape=(4,), begin=12, end=28)}, 28), "tensor a.weight has type F8_E4M3, which cannot be merged"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_safetensors_file(case, tmp_path):
    good_models(tmp_path)
    content, message = FILES[case]
    (tmp_path / "x/model.safetensors").write_bytes(content)
    check(tmp_path, 3, message)


def test_all_problems_of_all_files_are_listed_together(tmp_path):
    good_models(tmp_path)
    bad = headers(c=entry("Q4"), d=entry(shape=(-1,)), e=entry(end=44))
    (tmp_path / "x/model.safetensors").write_bytes(safetensors(bad))
    (tmp_path / "base/model.safetensors").write_bytes(bytes(3))
    result = check(tmp_path, 3, "tensor c:", "tensor d:", "tensor e:", "base/model.safetensors", config=added("# more"))
    assert "4 problems" in result.err


@pytest.mark.parametrize("model, value", [("base", np.nan), ("x", np.inf), ("x", -np.inf)])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_nan_and_infinity(model, dtype, value, tmp_path):
    w = np.arange(300.0).reshape(10, 30)
    for name in ("base", "x"):
        bad = w.copy()
        if name == model:
            bad[7, 3] = value
        tools.write_folder(tmp_path / name, {"a": ("F32", W), "w": (dtype, tools.narrow(bad, dtype) if np.isfinite(value) or dtype != "BF16"
                                                  else (bad.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))})  # fmt: skip
    word = "NaN" if np.isnan(value) else "infinity"
    check(tmp_path, 3, f"model {model}", f"tensor w holds {word} at index 213")


def test_nan_in_an_unmerged_part_of_another_rank(tmp_path):
    """The last ranks' part: the first must not wait for ever, and one message comes."""
    w = np.ones((2000, 500), np.float32)
    bad = w.copy()
    bad[-1, -1] = np.nan
    tools.write_folder(tmp_path / "base", {"w": ("F32", w)})
    tools.write_folder(tmp_path / "x", {"w": ("F32", bad)})
    for method in ("task_arithmetic", "ties", "dare_ties"):
        config = changed("task_arithmetic", method) + "parameters: {density: 0.5}\n"
        check(tmp_path, 3, "tensor w holds NaN at index 999999", config=config, ranks=4)


def test_overflow_of_the_output_type(tmp_path):
    tools.write_folder(tmp_path / "base", {"w": ("F32", W)})
    tools.write_folder(tmp_path / "x", {"w": ("F32", W * np.float32(1e6))})
    check(tmp_path, 1, "tensor w", config=added("out_dtype: float16"))


# ---- folders and index files -------------------------------------------------------------------------------------------


def sharded(folder):
    good_models(folder)
    tools.shutil.rmtree(folder / "x")
    x = tools.write_folder(folder / "x", TENSORS, shards=2)
    return x, json.loads((x / "model.safetensors.index.json").read_text())


A, Z = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def index_with(weight_map):
    def build(x, index):
        (x / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return build


def index_text(text):
    return lambda x, index: (x / "model.safetensors.index.json").write_bytes(text)


def remove(*names):
    return lambda x, index: [(x / name).unlink() for name in names]


def both(*steps):
    return lambda x, index: [step(x, index) for step in steps]


def only_bin(x, index):
    remove(A, Z, "model.safetensors.index.json")(x, index)
    (x / "pytorch_model.bin").write_bytes(b"PK")


def stored_twice(x, index):
    tools.write_safetensors(x / A, TENSORS)


FOLDERS = {
    "index empty": (index_text(b""), "model.safetensors.index.json"),
    "index no JSON": (index_text(b"{"), "model.safetensors.index.json"),
    "index a list": (index_text(b"[]"), "expected an object with weight_map"),
    "index without map": (index_text(b'{"metadata": {}}'), "expected an object with weight_map"),
    "map empty": (index_with({}), "expected an object with weight_map"),
    "map of numbers": (index_with({"a.weight": 1, "b.weight": Z}), "weight_map: a.weight: expected the name of a file"),
    "map leads out of the folder": (index_with({"a.weight": "../base/model.safetensors", "b.weight": Z}), "is not the name of a file in this folder"),
    "map with an absolute path": (index_with({"a.weight": "/etc/passwd", "b.weight": Z}), "is not the name of a file in this folder"),
    "file missing": (remove(Z), f"weight_map names {Z}, which does not exist"),
    "tensor in another file": (index_with({"a.weight": Z, "b.weight": A}), f"tensor a.weight is said to be in {Z}, found in {A}"),
    "tensor in no file": (index_with({"a.weight": A, "b.weight": Z, "c": A}), f"weight_map: tensor c is not in {A}"),
    "tensor not in the map": (index_with({"a.weight": A}), "x: lacks tensor b.weight of the base"),
    "tensor in two files": (stored_twice, "tensor b.weight is stored twice"),
    "shard truncated": (lambda x, i: (x / Z).write_bytes((x / Z).read_bytes()[:-3]), "is truncated"),
    "shard a folder": (both(remove(Z), lambda x, i: (x / Z).mkdir()), "expected a regular file"),
    "no index": (remove("model.safetensors.index.json"), "has 2 .safetensors files"),
    "one part of two": (remove("model.safetensors.index.json", Z), "has one part of several"),
    "nothing": (remove("model.safetensors.index.json", A, Z), "has no weights"),
    "only .bin": (only_bin, "has only .bin weights; convert them"),
    "an adapter": (both(remove("model.safetensors.index.json", Z), lambda x, i: (x / A).rename(x / "adapter_model.safetensors")), "is a PEFT adapter"),
    "config.json broken": (lambda x, i: (x / "config.json").write_text("{"), "x/config.json"),
    "config.json a list": (lambda x, i: (x / "config.json").write_text("[]"), "x/config.json: expected a JSON object"),
    "link to nowhere": (both(remove(Z), lambda x, i: (x / Z).symlink_to("nowhere")), "which does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_folder(case, tmp_path):
    x, index = sharded(tmp_path)
    build, message = FOLDERS[case]
    build(x, index)
    check(tmp_path, 3, message)


LOCATIONS = {
    "a missing path": ("nowhere", "nowhere: model not found, tried"),
    "a missing hub name": ("org/name", "models are never downloaded"),
    "a missing revision": ("org/name@v3", "models are never downloaded"),
    "a file of another kind": ("c.yaml", "expected a folder, a .safetensors file or a merged .h5 file"),
    "a device": ("/dev/null", "expected a folder"),
}


@pytest.mark.parametrize("case", LOCATIONS)
def test_location(case, tmp_path):
    good_models(tmp_path)
    model, message = LOCATIONS[case]
    check(tmp_path, 3, message, config=changed("model: x", f"model: {model}"))


# ---- merged HDF5 -------------------------------------------------------------------------------------------------------


def merged_file(path):
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["format_version"] = "nps-merged", 1
        for name, (_, array) in TENSORS.items():
            file.create_dataset(f"tensors/{name}", data=array)


def edit(change):
    def build(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return build


def replace(file, name, **how):
    del file["tensors"][name]
    file["tensors"].create_dataset(name, **how)


HDF5 = {
    "empty": (lambda path: path.write_bytes(b""), 3, "x.h5"),
    "no HDF5": (lambda path: path.write_bytes(b"x" * 4096), 3, "x.h5"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:1500]), 3, "x.h5"),
    "truncated data": (lambda path: path.write_bytes(path.read_bytes()[:-4]), 3, "x.h5"),
    "damaged": (lambda path: path.write_bytes(path.read_bytes()[:96] + bytes(400) + path.read_bytes()[496:]), 3, "x.h5"),
    "no format": (edit(lambda f: f.attrs.__delitem__("format")), 3, "it has no attribute 'format'"),
    "another format": (edit(lambda f: f.attrs.__setitem__("format", "other")), 3, "expected format 'nps-merged', found 'other'"),
    "a later version": (edit(lambda f: f.attrs.__setitem__("format_version", 2)), 3, "expected format_version 1, found 2"),
    "no version": (edit(lambda f: f.attrs.__delitem__("format_version")), 3, "has no attribute 'format_version'"),
    "an archive": (edit(lambda f: f.attrs.__setitem__("format", "nps-archive")), 3, "/base has no attribute 'name'"),
    "config no JSON": (edit(lambda f: f.attrs.__setitem__("config_json", "{")), 3, "x.h5: attribute config_json"),
    "no tensors": (edit(lambda f: f.__delitem__("tensors")), 3, "x.h5"),
    "a tensor missing": (edit(lambda f: f["tensors"].__delitem__("b.weight")), 3, "x: lacks tensor b.weight"),
    "a chunked tensor": (edit(lambda f: replace(f, "a.weight", data=W, chunks=(1, 4))), 3, "expected a contiguous dataset"),
    "a compressed tensor": (edit(lambda f: replace(f, "a.weight", data=W, compression="gzip")), 3, "expected a contiguous dataset"),
    "big-endian": (edit(lambda f: replace(f, "a.weight", data=W.astype(">f4"))), 3, "tensor a.weight: unknown type"),
    "texts": (edit(lambda f: replace(f, "a.weight", data=["a", "b"])), 3, "tensor a.weight: unknown type"),
    "a group for a tensor": (edit(lambda f: (f["tensors"].__delitem__("a.weight"), f["tensors"].create_group("a.weight"))), 3, "expected a dataset, found a group"),
    "never written": (edit(lambda f: replace(f, "a.weight", shape=(3, 4), dtype="f4")), 3, "tensor a.weight"),
    "another shape": (edit(lambda f: replace(f, "a.weight", data=W.T.copy())), 3, "tensor a.weight has shape [4, 3], expected [3, 4]"),
}  # fmt: skip


@pytest.mark.parametrize("case", HDF5)
def test_merged_hdf5(case, tmp_path):
    good_models(tmp_path)
    merged_file(tmp_path / "x.h5")
    build, code, message = HDF5[case]
    build(tmp_path / "x.h5")
    check(tmp_path, code, message, config=changed("model: x", "model: x.h5"))


# ---- command lines -----------------------------------------------------------------------------------------------------

COMMANDS = {
    "nothing": ([], "missing argument CONFIG"),
    "too much": (["c.yaml", "out.h5", "more"], "unexpected argument 'more'"),
    "unknown option": (["c.yaml", "out.h5", "--sett", "a=1"], "unknown option '--sett', did you mean '--set'?"),
    "unknown letter": (["c.yaml", "-x"], "unknown option '-x'"),
    "mergekit's option": (["c.yaml", "out.h5", "--cuda"], "unknown option '--cuda': that is mergekit's, leave it out"),
    "mergekit's option with a value": (["c.yaml", "out.h5", "--out-shard-size", "1B"],
                                       "that is mergekit's, here it is --set output.shard_size=5GB, in bytes"),
    "option without value": (["c.yaml", "out.h5", "--log"], "option --log needs FILE"),
    "letter without value": (["c.yaml", "-o"], "option -o needs OUT"),
    "value of a flag": (["c.yaml", "out.h5", "--force=yes"], "option --force takes no value"),
    "empty value": (["c.yaml", "--output="], "option --output: OUT is empty"),
    "empty config": ([""], "CONFIG is empty"),
    "ranks a word": (["c.yaml", "--plan", "--ranks", "many"], "option --ranks: expected a whole number from 1 on, found 'many'"),
    "ranks zero": (["c.yaml", "--plan", "--ranks", "0"], "expected a whole number from 1 on, found '0'"),
    "ranks too many": (["c.yaml", "--plan", "--ranks", "99999999999"], "expected a whole number"),
    "ranks without plan": (["c.yaml", "out.h5", "--ranks", "4"], "option --ranks goes with --plan only"),
    "plan and check": (["c.yaml", "--plan", "--check"], "options --plan and --check exclude each other"),
    "quiet and verbose": (["c.yaml", "out.h5", "-qv"], "options --quiet and --verbose exclude each other"),
    "two outputs": (["c.yaml", "out.h5", "-o", "other.h5"], "two outputs are given"),
    "set without value": (["c.yaml", "out.h5", "--set", "dtype"], "option --set: expected KEY=VALUE"),
    "set without key": (["c.yaml", "out.h5", "--set", "=1"], "option --set: expected KEY=VALUE"),
    "set of an unknown key": (["c.yaml", "out.h5", "--set", "dtyp=float16"], "--set dtyp: unknown key 'dtyp', did you mean 'dtype'?"),
    "set of a model that is not there": (["c.yaml", "out.h5", "--set", "models.7.parameters.weight=1"], "no entry '7' in a list of 1"),
    "set below a number": (["c.yaml", "out.h5", "--set", "dtype.a=1"], "expected a mapping or list before 'a'"),
    "set with an empty key": (["c.yaml", "out.h5", "--set", "a..b=1"], "found an empty key"),
    "set to no YAML": (["c.yaml", "out.h5", "--set", "dtype=["], "--set dtype: not YAML"),
    "no output": (["c.yaml"], "no output: give OUT on the command line, or output.path"),
    "no config": (["nowhere.yaml", "out.h5"], "nowhere.yaml: the config cannot be read: No such file or directory"),
    "config a folder": (["base", "out.h5"], "base: the config cannot be read: Is a directory"),
    "output in no folder": (["c.yaml", "nowhere/out.h5"], "the folder nowhere cannot be written to: No such file or directory"),
    "output below a file": (["c.yaml", "c.yaml/out.h5"], "c.yaml is no folder"),
    "output is here": (["c.yaml", "."], "expected the name of an output file or folder"),
    "output exists": (["c.yaml", "old.h5"], "old.h5: exists already; --force replaces it"),
    "output folder exists": (["c.yaml", "old"], "old: exists already; --force replaces it"),
    "output an input": (["c.yaml", "base", "--force"], "base: the output would replace one of the inputs"),
    "output a foreign file": (["c.yaml", "c.h5", "--force"], "c.h5: exists and is no HDF5 file, it is never replaced"),
    "output a foreign folder": (["c.yaml", "src", "--force"], "it is never replaced"),
    "output a folder of folders": (["c.yaml", "deep", "--force"], "it is never replaced"),
    "file for a folder": (["c.yaml", "base.h5", "--force"], "is a folder, which an HDF5 file never replaces"),
    "folder for a file": (["c.yaml", "c.yaml", "--force"], "is a file, which a model folder never replaces"),
}  # fmt: skip


@pytest.fixture
def outputs(tmp_path):
    good_models(tmp_path)
    merged_file(tmp_path / "old.h5")
    tools.copy_folder(tmp_path / "base", tmp_path / "old")
    (tmp_path / "c.h5").write_text("not HDF5")
    for folder in ("src", "deep/below", "base.h5"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "src/main.c").write_text("int main;")
    (tmp_path / "deep/config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("case", COMMANDS)
def test_command_line(case, outputs):
    arguments, message = COMMANDS[case]
    before = (outputs / "old.h5").read_bytes()
    check(outputs, 2, message, arguments=arguments)
    assert (outputs / "old.h5").read_bytes() == before


def test_a_missing_model_counts_once(tmp_path):
    result = check(tmp_path, 3, "base: model not found", config=changed("dtype:", "  - model: base\ndtype:"))
    assert "2 problems" in result.err


def test_a_misspelt_tokenizer_source(tmp_path):
    good_models(tmp_path)
    check(tmp_path, 3, "c.yaml: tokenizer_source: did you mean 'union'?", config=added("tokenizer_source: unoin"))


def test_an_adapter_is_no_file(tmp_path):
    """Said before models are looked for."""
    check(tmp_path, 2, "d.h5: an adapter is a folder", config=None, program=tools.CONVERT,
          arguments=("nowhere", "d.h5", "--base", "none", "--lora-rank", "4"))  # fmt: skip


def test_paths_that_are_no_utf8(tmp_path):
    good_models(tmp_path)
    for name in ("base", "x"):
        (tmp_path / name).rename(tmp_path / os.fsdecode(b"\xff" + name.encode()))
    (tmp_path / "c.yaml").write_text(GOOD.replace("base_model: base", "base_model: b").replace("model: x", "model: l"))
    (tmp_path / "b").symlink_to(os.fsdecode(b"\xffbase"))
    (tmp_path / "l").symlink_to(os.fsdecode(b"\xffx"))
    out = os.fsdecode(b"out\xff")
    result = tools.run(tools.MERGE, "c.yaml", out, "--log", "log", cwd=tmp_path)
    assert result.code == 0, result
    done = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert done["event"] == "done" and done["output"] == "out?" and done["method"] == "task_arithmetic"
    found = tools.run(tools.INSPECT, os.fsdecode(b"\xffx"), "--json", cwd=tmp_path)
    assert json.loads(found.out)["path"] == "?x"
    assert tools.run(tools.CONVERT, os.fsdecode(b"\xffx"), "x.h5", cwd=tmp_path).code == 0
    shown = tools.run(tools.INSPECT, "x.h5", cwd=tmp_path)
    assert "?x" in shown.out, shown


LOGS = {
    "the config": (["c.yaml", "out.h5", "--log", "./c.yaml"], GOOD, "./c.yaml is the config"),
    "for a forgotten FILE": (["--log", "c.yaml", "out.h5"], GOOD, "c.yaml: exists and is no log: nothing is appended to it"),
    "an input's file": (["c.yaml", "out.h5", "--log", "x/config.json"], GOOD, "x/config.json: exists and is no log"),
    "OUT": (["c.yaml", "out", "--log", "../here/out/"], GOOD, "../here/out/ is the output, or lies in it"),
    "in OUT": (["c.yaml", "old", "--force", "--log", "old/run.log"], GOOD, "old/run.log is the output, or lies in it"),
    "a name of a model": (["c.yaml", "--log", "out.h5"], GOOD, "out.h5 ends in .h5, as an output does"),
    "in OUT of a model": (["c.yaml", "t-{name}", "--log", "./t-x"], GOOD, "./t-x is the output, or lies in it"),
    "output.path": (["c.yaml", "--log", "here"], added("output: {path: here}"), "here is output.path of the config"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOGS)
def test_a_log_destroys_nothing(case, outputs):
    here = outputs / "here"
    here.mkdir()
    for name in ("base", "x", "old"):
        (outputs / name).rename(here / name)
    arguments, config, message = LOGS[case]
    (here / "c.yaml").write_text(config)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    check(here, 2, message, config=config, arguments=arguments)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


INSPECTS = {
    "nothing": ([], 2, "missing argument MODEL"),
    "unknown option": (["x", "--jason"], 2, "did you mean '--json'?"),
    "missing": (["nowhere"], 3, "nowhere: model not found"),
    "a config": (["c.yaml"], 3, "expected a folder, a .safetensors file or a merged .h5 file"),
    "against nothing": (["x", "--against", "nowhere"], 3, "nowhere: model not found"),
}


@pytest.mark.parametrize("case", INSPECTS)
def test_inspect(case, tmp_path):
    good_models(tmp_path)
    arguments, code, message = INSPECTS[case]
    check(tmp_path, code, message, arguments=arguments, program=tools.INSPECT)


# ---- several ranks -----------------------------------------------------------------------------------------------------

UNDER_MPIRUN = [("config", "misspelt method"), ("config", "not YAML"), ("config", "filters that leave out a tensor"),
                ("config", "memory too small"), ("file", "truncated data"), ("file", "another shape"),
                ("folder", "only .bin"), ("folder", "tensor in another file"), ("hdf5", "truncated"),
                ("hdf5", "a chunked tensor"), ("command", "unknown option"), ("command", "output exists")]  # fmt: skip


@pytest.mark.parametrize("kind, case", UNDER_MPIRUN)
def test_one_message_from_two_ranks(kind, case, outputs):
    if kind == "config":
        check(outputs, 2, CONFIGS[case][1], config=CONFIGS[case][0], ranks=2)
    elif kind == "file":
        (outputs / "x/model.safetensors").write_bytes(FILES[case][0])
        check(outputs, 3, FILES[case][1], ranks=2)
    elif kind == "folder":
        x, index = sharded(outputs)
        FOLDERS[case][0](x, index)
        check(outputs, 3, FOLDERS[case][1], ranks=2)
    elif kind == "hdf5":
        merged_file(outputs / "x.h5")
        HDF5[case][0](outputs / "x.h5")
        check(outputs, HDF5[case][1], HDF5[case][2], config=changed("model: x", "model: x.h5"), ranks=2)
    else:
        check(outputs, 2, COMMANDS[case][1], arguments=COMMANDS[case][0], ranks=2)
