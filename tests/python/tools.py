"""What the tests share: the programs, models on disk (in NumPy alone) and comparisons.

A stored tensor is (dtype, array): dtype is the safetensors name; the array has the tensor's shape and holds its bits, for
BF16 as uint16. `values()` gives the numbers.
"""

import atexit
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import tempfile
import time

import h5py
import numpy as np
import yaml

ROOT = pathlib.Path(os.environ.get("NPS_SRCDIR") or pathlib.Path(__file__).resolve().parents[2])
BUILD = pathlib.Path(os.environ.get("NPS_BUILDDIR") or ROOT / "build/tests")
MODELS = ROOT / "examples/models"
MERGE, INSPECT, EVAL, CONVERT = (BUILD / f"nps-{name}" for name in ("merge", "inspect", "eval", "convert"))

TASKS = {
    "digits-vit": ["plain", "rot90", "invert", "shift", "noise", "parity", "lefthalf", "blur"],
    "bytes-llama": ["c", "python", "french", "german", "legal"],
}

NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip

# ---- running programs --------------------------------------------------------------------------------------------------

# Open MPI's own files: a job that ends removes the folder that all jobs of a user share, under another that starts.
MPI_FILES = tempfile.mkdtemp(prefix="nps-mpi-", dir="/tmp")
atexit.register(shutil.rmtree, MPI_FILES, ignore_errors=True)

ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "OMPI_MCA_orte_tmpdir_base": MPI_FILES,
}  # fmt: skip

TIME_LIMIT = 120


def environment(extra=None):
    return {**os.environ, **ENVIRONMENT, **(extra or {})}


def session_processes(session):
    """The processes of a session: mpirun's ranks have process groups of their own but the same session."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def kill_session(session):
    for process in session_processes(session):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass


def ranks_of(session):
    """The processes of a session that run nps-merge."""

    def name(process):
        try:
            return pathlib.Path(f"/proc/{process}/comm").read_text().strip()
        except OSError:
            return ""

    return [process for process in session_processes(session) if name(process) == "nps-merge"]


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __str__(self):
        return f"exit code {self.code}\n---- stdout\n{self.out}\n---- stderr\n{self.err}"


def command(program, *arguments, ranks=0):
    words = [str(program), *map(str, arguments)]
    return [os.environ.get("MPIRUN") or "mpirun", "-np", str(ranks), *words] if ranks else words


def start(program, *arguments, ranks=0, env=None, cwd=None):
    return subprocess.Popen(
        command(program, *arguments, ranks=ranks), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="replace", env=environment(env), cwd=cwd, start_new_session=True,
    )  # fmt: skip


def finish(process, limit=TIME_LIMIT):
    """Wait for a started program; one that hangs is killed with all its ranks, and the test fails."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        kill_session(process.pid)
        out, err = process.communicate()
        raise AssertionError(f"no end within {limit} s: {Result(None, out, err)}") from None
    finally:
        kill_session(process.pid)
    return Result(process.returncode, out, err)


def run(program, *arguments, ranks=0, limit=TIME_LIMIT, env=None, cwd=None):
    """Run a program, under mpirun where ranks are given."""
    return finish(start(program, *arguments, ranks=ranks, env=env, cwd=cwd), limit)


def merge(config, out, *options, ranks=0, code=0, **more):
    """Run nps-merge on a config (a path or a dict) and check its exit code (None: any)."""
    if isinstance(config, dict):
        path = pathlib.Path(out).parent / f"{pathlib.Path(out).name}.yaml"
        config = write_config(path, config)
    result = run(MERGE, config, out, *options, ranks=ranks, **more)
    assert code is None or result.code == code, f"expected exit code {code}: {result}"
    return result


def evaluate(*arguments, **more):
    """What nps-eval prints as JSON: {"tasks": ..., "average": ...}."""
    result = run(EVAL, *arguments, "--json", **more)
    assert result.code == 0, result
    return json.loads(result.out)


def check_log_probabilities(found, want):
    """Both of one shape: found by the program, wanted of a network that tells its answers well apart."""
    assert np.ptp(want) > 1, "weights too small to tell networks apart"
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-4)


def write_config(path, config):
    path = pathlib.Path(path)
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
    return path


def recipe(family, method, parameters=None, model_parameters=None, base=True, names=None, **more):
    """A config over an example family. model_parameters: one dict for all, or a list of one a model."""
    names = names or TASKS[family]
    each = model_parameters if isinstance(model_parameters, list) else [model_parameters] * len(names)
    models = [{"model": str(MODELS / family / n), **({"parameters": p} if p else {})} for n, p in zip(names, each)]
    config = {"merge_method": method, "models": models}
    if base:
        config["base_model"] = str(MODELS / family / "base")
    if parameters:
        config["parameters"] = parameters
    return {**config, "dtype": "float32", **more}


SMALL_SEARCH, SMALL_SEARCH_TASKS = MODELS / "digits-vit", ["plain", "blur"]


def write_small_data(path, samples):
    """Calibration data of small_search(): the first samples of each task."""
    with h5py.File(SMALL_SEARCH / "calibration.h5") as source, h5py.File(path, "w") as target:
        for task in SMALL_SEARCH_TASKS:
            for name in ("inputs", "labels"):
                target[f"{task}/{name}"] = source[task][name][:samples]
    return path


def small_search(data, **search):
    """A search of a second or two. data: the fixture of that name."""
    return {
        "merge_method": "nps", "base_model": str(SMALL_SEARCH / "base"), "seed": 5,
        "models": [{"model": str(SMALL_SEARCH / t), "name": t} for t in SMALL_SEARCH_TASKS],
        "nps": {"subspaces": 4, "density": 0.2},
        "search": {"stages": ["prune", "fuse"], "generations": 6, "population": 6, "final": "best", **search},
        "fitness": {"metric": "nll", "holdout": 0, "batch": 16,
                    "tasks": [{"name": t, "data": str(data)} for t in SMALL_SEARCH_TASKS]},
        "dtype": "float32",
    }  # fmt: skip


# ---- numbers -----------------------------------------------------------------------------------------------------------


def bf16_bits(x):
    """Round float64 (or float32) to bfloat16 once, to nearest even: by way of float32 rounded to odd."""
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore"):
        f = x.astype(np.float32)
    bits = f.view(np.uint32) - (np.abs(f.astype(np.float64)) > np.abs(x)).astype(np.uint32)
    bits |= (bits.view(np.float32).astype(np.float64) != x).astype(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def from_bf16(bits):
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(x, dtype):
    """float64 → the bits of a stored type, rounded once."""
    return bf16_bits(x) if dtype == "BF16" else np.asarray(x).astype(NUMPY[dtype])


def values(stored):
    """The numbers of a stored tensor; bfloat16 as float32."""
    dtype, array = stored
    return from_bf16(array) if dtype == "BF16" else array


# ---- models on disk ----------------------------------------------------------------------------------------------------


def write_safetensors(path, tensors, metadata={"format": "pt"}):
    """tensors: {name: (dtype, array of its bits)}."""
    header, blobs, at = ({"__metadata__": metadata} if metadata else {}), [], 0
    for name, (dtype, array) in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_folder(folder, tensors, config=None, shards=1):
    """A Hugging Face folder; with several shards the tensors are dealt out in turn."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    where = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(where.values())):
        write_safetensors(folder / file, {n: t for n, t in tensors.items() if where[n] == file})
    total = sum(array.nbytes for _, array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, t in header.items():
        begin, end = (8 + size + at for at in t["data_offsets"])
        tensors[name] = (t["dtype"], np.frombuffer(raw[begin:end], NUMPY[t["dtype"]]).reshape(t["shape"]))
    return tensors


def h5_dtype(dataset):
    """The safetensors name of a dataset's type."""
    kind = dataset.id.get_type()
    if isinstance(kind, h5py.h5t.TypeFloatID) and kind.get_size() == 2:
        return "BF16" if kind.get_fields()[2] == 8 else "F16"
    if isinstance(kind, h5py.h5t.TypeEnumID):
        return "BOOL"
    return next(name for name, numpy in NUMPY.items() if name != "BF16" and dataset.dtype == numpy)


def read_h5(path):
    tensors = {}
    with h5py.File(path, "r") as file:
        for name, dataset in file["tensors"].items():
            dtype = h5_dtype(dataset)
            if dtype == "BF16":
                array = np.empty(dataset.shape, np.uint16)
                dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array, mtype=dataset.id.get_type())
            else:
                array = dataset[()]
            tensors[name] = (dtype, np.asarray(array))
    return tensors


def read_model(path):
    """Every stored tensor of a folder, a safetensors file or a merged HDF5 file."""
    path = pathlib.Path(path)
    if path.suffix == ".h5":
        return read_h5(path)
    if path.is_file():
        return read_safetensors(path)
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors.update(read_safetensors(file))
    return tensors


def same_tensors(a, b):
    """Whether two models' stored tensors are the same bytes."""
    return a.keys() == b.keys() and all(
        a[n][0] == b[n][0] and a[n][1].shape == b[n][1].shape and a[n][1].tobytes() == b[n][1].tobytes() for n in a
    )


def search_content(path):
    """All that must not depend on how a search was interrupted: tensors and histories, as bytes."""
    found = {}

    def take(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[:].tobytes()
        for key, value in item.attrs.items():
            found[f"{name}@{key}"] = np.asarray(value).tolist()

    with h5py.File(path) as file:
        for group in ("tensors", "search"):
            file[group].visititems(take)
    return found


def copy_folder(source, target):
    shutil.copytree(source, target)
    return pathlib.Path(target)


def wait_for(condition, limit=20, pause=0.005):
    """Poll until a condition holds; False after the limit."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    return condition()
