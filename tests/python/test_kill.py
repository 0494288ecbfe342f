"""A run that is killed, or whose disk is full or read-only: the target is absent, the complete old one or the new one."""

import hashlib
import os
import random
import shlex
import signal
import subprocess
import time

import numpy as np
import pytest
import tools

RANKS = 2
LAYERS, ROWS, COLUMNS = 40, 1000, 1000
END_LIMIT = 30
FILES = 64  # Open MPI itself needs some


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """base and three fine-tuned models of 40 million bfloat16 parameters each, so that a merge takes a second or two."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    w = rng.standard_normal(ROWS * COLUMNS).astype(np.float32)
    step = rng.standard_normal(ROWS * COLUMNS).astype(np.float32) / 50
    shape = (ROWS, COLUMNS)
    for k, name in enumerate(["base", "x", "y", "z"]):
        tensors = {}
        for i in range(LAYERS):
            value = np.roll(w, 1009 * i) + (np.roll(step, 7919 * (i + 31 * k)) if k else 0)
            tensors[f"layers.{i}.weight"] = ("BF16", tools.bf16_bits(value).reshape(shape))
        tools.write_folder(folder / name, tensors)
    return folder


def config_of(models, method):
    return {"merge_method": method, "base_model": str(models / "base"), "dtype": "bfloat16",
            "models": [{"model": str(models / m)} for m in ("x", "y", "z")], "output": {"shard_size": "15MB"},
            "parameters": {"weight": 0.5, "density": 0.4, **({"scope": "model"} if method == "ties" else {})}}  # fmt: skip


def fingerprint(path):
    """Of all tensors of a complete model; anything incomplete fails to load."""
    h = hashlib.sha256()
    for name, (dtype, array) in sorted(tools.read_model(path).items()):
        h.update(f"{name} {dtype} {array.shape}".encode())
        h.update(array.tobytes())
    return h.hexdigest()


@pytest.fixture(scope="module")
def outputs(models, tmp_path_factory):
    """Both forms of the old output (another method's) and of the new one: paths, fingerprints; and a run's seconds."""
    folder = tmp_path_factory.mktemp("outputs")
    new = tools.write_config(folder / "new.yaml", config_of(models, "ties"))
    old = tools.write_config(folder / "old.yaml", config_of(models, "task_arithmetic"))
    found = {"config": new}
    for form in ("out.h5", "out"):
        tools.merge(old, folder / f"old-{form}")
        began = time.monotonic()
        tools.merge(new, folder / f"new-{form}", ranks=RANKS)
        seconds = time.monotonic() - began
        found[form] = (folder / f"old-{form}", fingerprint(folder / f"old-{form}"),
                       fingerprint(folder / f"new-{form}"), seconds)  # fmt: skip
    assert found["out.h5"][1] != found["out.h5"][2] == found["out"][2]
    return found


def put_old(old, out):
    if old.is_dir():
        tools.copy_folder(old, out)
    else:
        tools.shutil.copyfile(old, out)


def strike(process, how, chance):
    """Kill a random rank at once, or end or kill mpirun."""
    victims = tools.ranks_of(process.pid)
    if how != "rank":
        process.send_signal(how)
    elif victims:
        os.kill(chance.choice(victims), signal.SIGKILL)


def assert_whole(out, old_print, new_print):
    """The target is absent (without an old one), or the old or the new one. Returns which."""
    if not out.exists():
        assert old_print is None, "the old output is lost"
        return "absent"
    found = fingerprint(out)
    assert found in (old_print, new_print), "the output is neither the old nor the new one"
    return "old" if found == old_print else "new"


TRIES = [(form, with_old, "rank", i) for i in range(5) for form in ("out.h5", "out") for with_old in (False, True)]
TRIES += [("out.h5", True, signal.SIGTERM, 0), ("out", False, signal.SIGTERM, 0),
          ("out.h5", False, signal.SIGKILL, 0), ("out", True, signal.SIGKILL, 0)]  # fmt: skip


@pytest.mark.parametrize("form, with_old, how, attempt", TRIES)
def test_killed_at_a_random_moment(form, with_old, how, attempt, outputs, tmp_path):
    old, old_print, new_print, seconds = outputs[form]
    chance = random.Random(f"{form} {with_old} {how} {attempt}")
    out = tmp_path / form
    if with_old:
        put_old(old, out)
    moment = chance.uniform(0.25, 1.05 * seconds)
    process = tools.start(tools.MERGE, outputs["config"], out, "--force", ranks=RANKS)
    time.sleep(moment)
    strike(process, how, chance)
    assert tools.wait_for(lambda: not tools.ranks_of(process.pid), END_LIMIT), "ranks hang"
    result = tools.finish(process, END_LIMIT)
    state = assert_whole(out, old_print if with_old else None, new_print)
    assert state == "new" or result.code != 0, result
    left = sorted(p.name for p in tmp_path.iterdir())
    assert set(left) <= {form, f".{form}.partial", f".{form}.lock"}, left
    print(f"{form}: {how} at {moment:.2f} of {seconds:.2f} s: {state}, {left}")


@pytest.mark.parametrize("form", ["out.h5", "out"])
def test_the_next_run_removes_what_a_killed_one_left(form, outputs, tmp_path):
    """Killed while it writes: the partial output exists by then for certain."""
    old, old_print, new_print, _ = outputs[form]
    out, partial = tmp_path / form, tmp_path / f".{form}.partial"
    put_old(old, out)
    process = tools.start(tools.MERGE, outputs["config"], out, "--force", ranks=RANKS)
    written = lambda: partial.exists() and (form == "out.h5" or any(partial.glob("*.safetensors")))
    assert tools.wait_for(written), "no partial output was seen"
    strike(process, "rank", random.Random(1))
    result = tools.finish(process, END_LIMIT)
    assert result.code != 0 and assert_whole(out, old_print, new_print) == "old", result
    assert partial.exists()
    result = tools.merge(outputs["config"], out, "--force", ranks=RANKS)
    assert result.err.count(f"{partial}: left by an interrupted run, removed") == 1, result
    assert assert_whole(out, old_print, new_print) == "new"
    assert [p.name for p in tmp_path.iterdir()] == [form], "something is left behind"


# ---- two runs at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["out.h5", "out"])
def test_a_second_run_leaves_the_first_alone(form, outputs, tmp_path):
    """The first one is stopped while it writes; a third, after it was killed, succeeds."""
    _, _, new_print, _ = outputs[form]
    out, partial = tmp_path / form, tmp_path / f".{form}.partial"
    for end in (signal.SIGCONT, signal.SIGKILL):
        first = tools.start(tools.MERGE, outputs["config"], out, "--force")
        assert tools.wait_for(partial.exists), "no partial output was seen"
        first.send_signal(signal.SIGSTOP)
        inode = partial.stat().st_ino
        second = tools.merge(outputs["config"], out, "--force", code=1)
        assert f"error: {out}: another run is writing it" in second.err and second.err.count("error:") == 1, second
        assert partial.stat().st_ino == inode
        first.send_signal(end)
        result = tools.finish(first)
        assert (result.code == 0) == (end == signal.SIGCONT), result
        assert fingerprint(out) == new_print
    tools.merge(outputs["config"], out, "--force")
    assert fingerprint(out) == new_print and [p.name for p in tmp_path.iterdir()] == [form]


# ---- few open files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [0, 2])
def test_more_shards_than_open_files(ranks, tmp_path):
    """Read and written: more files than a process may open."""
    for name, values in (("base", 0), ("x", 2)):
        tensors = {f"layers.{i}": ("F32", np.full(256, values + i, np.float32)) for i in range(2 * FILES)}
        tools.write_folder(tmp_path / name, tensors, shards=2 * FILES)
    config = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "x"}],
              "parameters": {"weight": 0.5}, "output": {"shard_size": "1KB"}}  # fmt: skip
    file, out = tools.write_config(tmp_path / "c.yaml", config), tmp_path / "out"
    program = shlex.join(tools.command(tools.MERGE, file, out, ranks=ranks))
    result = tools.run("sh", "-c", f"ulimit -n {FILES} && exec {program}")
    assert result.code == 0, result
    assert len(list(out.glob("*.safetensors"))) == 2 * FILES
    merged = tools.read_model(out)
    assert all((merged[f"layers.{i}"][1] == 1 + i).all() for i in range(2 * FILES))


# ---- disks -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def namespace():
    """The words that start a program where it may mount: as root, or in a namespace of its own."""
    for words in (["unshare", "-m"], ["unshare", "-rm"]):
        trial = subprocess.run(
            [*words, "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"], capture_output=True, text=True
        )
        if trial.returncode == 0:
            return words
    pytest.fail(f"a small tmpfs can be mounted neither by this user nor in a namespace of its own: {trial.stderr}")


def on_disk(namespace, folder, prepare, *arguments, ranks=0, after="true"):
    """Run nps-merge in a namespace where `prepare` (shell) has mounted `folder`; stdout ends with what is left there.
    `after` (shell) must succeed then."""
    program = shlex.join(tools.command(tools.MERGE, *arguments, ranks=ranks))
    script = f"{prepare} || exit 99\n{program}\ncode=$?\n{after} || exit 98\necho LEFT; ls -A {folder}\nexit $code"
    return tools.run(*namespace, "sh", "-c", script)


def left_of(result):
    return result.out.split("LEFT\n")[1].split()


@pytest.fixture
def small(tmp_path):
    """Models of 4 MB, with a tokenizer file of 1 MB."""
    w = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    for name in ("base", "x"):
        tools.write_folder(tmp_path / name, {f"layers.{i}": ("F32", w[:128] + i) for i in range(8)})
    (tmp_path / "base/tokenizer.json").write_bytes(b" " * (1 << 20))
    config = {"merge_method": "ties", "base_model": "base", "models": [{"model": "x"}],
              "parameters": {"weight": 1, "density": 0.5}, "output": {"shard_size": "1MB"}}  # fmt: skip
    tools.write_config(tmp_path / "c.yaml", config)
    (tmp_path / "disk").mkdir()
    return tmp_path


def tmpfs(disk, kilobytes):
    return f"mount -t tmpfs -o size={kilobytes}k none {disk}"


@pytest.mark.parametrize("form", ["out.h5", "out"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_disk_with_less_than_the_output_needs(form, ranks, small, namespace):
    """Known before any work is done."""
    disk = small / "disk"
    result = on_disk(namespace, disk, tmpfs(disk, 2048), small / "c.yaml", disk / form, ranks=ranks)
    assert result.code == 1, result
    assert result.err.count("error:") == 1 and f"{disk / form}: needs" in result.err and "free" in result.err, result
    assert left_of(result) == []


@pytest.mark.parametrize("form", ["out.h5", "out"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_disk_that_fills_up(form, ranks, small, namespace):
    """Room for the tensors, not for what comes with them."""
    disk = small / "disk"
    result = on_disk(namespace, disk, tmpfs(disk, 4096 + 300), small / "c.yaml", disk / form, ranks=ranks)
    assert result.code == 1, result
    assert "No space left on device" in result.err and f".{form}.partial" in result.err, result
    assert result.err.count("error:") == 1 and not any(w in result.err for w in ("HDF5-DIAG", "MPI_Abort")), result
    assert left_of(result) == []


@pytest.mark.parametrize("form", ["out.h5", "out"])
def test_full_disk_keeps_the_old_output(form, small, namespace):
    disk = small / "disk"
    room = 12000 if form == "out.h5" else 8000  # an HDF5 file reserves 4 MiB for its metadata until it is closed
    first = shlex.join(tools.command(tools.MERGE, small / "c.yaml", disk / form, "--quiet"))
    prepare = f"{tmpfs(disk, room)} && {first} && cp -r {disk}/{form} {small}/kept"
    same = f"diff -r {disk}/{form} {small}/kept"
    result = on_disk(namespace, disk, prepare, small / "c.yaml", disk / form, "--force", ranks=2, after=same)
    assert result.code == 1 and result.err.count("error:") == 1 and form in result.err, result
    assert left_of(result) == [form], result


@pytest.mark.parametrize("form", ["out.h5", "out"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_read_only_target(form, ranks, small, namespace):
    disk = small / "disk"
    prepare = f"{tmpfs(disk, 20000)} && mount -o remount,ro {disk}"
    result = on_disk(namespace, disk, prepare, small / "c.yaml", disk / form, ranks=ranks)
    assert result.code == 1, result
    assert result.err.count("error:") == 1 and str(disk / form) in result.err, result
    assert "Read-only file system" in result.err and left_of(result) == [], result


def test_log_on_a_full_disk(small, namespace):
    """A log that cannot be written ends no merge."""
    disk = small / "disk"
    earlier = """{ printf '{"time":'; head -c 4088 /dev/zero; }"""
    prepare = f"{tmpfs(disk, 4)} && {earlier} >{disk}/log || true"
    result = on_disk(namespace, disk, prepare, small / "c.yaml", small / "out.h5", "--log", disk / "log")
    assert result.code == 0 and "the log cannot be written" in result.err, result
    assert (small / "out.h5").exists()
