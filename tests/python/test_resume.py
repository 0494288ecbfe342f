"""Searches that are interrupted go on where they were, on any number of ranks, to the same bytes."""

import json
import random
import signal
import time

import h5py
import numpy as np
import pytest
import tools

FAMILY, TASKS = tools.SMALL_SEARCH, tools.SMALL_SEARCH_TASKS


recipe, content = tools.small_search, tools.search_content


def merge(config, out, *options, ranks=2, code=0):
    result = tools.merge(config, out, *options, ranks=ranks, code=code)
    return result.out + result.err


def snapshot_of(out):
    return out.with_name(out.name + ".snapshot.h5")


def start(config, out, ranks):
    """Start a search, and wait for its first snapshot."""
    process = tools.start(tools.MERGE, tools.write_config(out.with_suffix(".yaml"), config), out, ranks=ranks)
    assert tools.wait_for(snapshot_of(out).exists, 60), tools.finish(process, 1)
    return process


@pytest.mark.parametrize("ranks, again", [(1, 3), (2, 1), (3, 2)])
def test_a_killed_search_goes_on(ranks, again, data, whole, tmp_path):
    """kill -9 of everything at a random moment after the first snapshot."""
    out = tmp_path / "out.h5"
    process = start(recipe(data), out, ranks)
    time.sleep(random.uniform(0, 1.5))
    tools.kill_session(process.pid)
    tools.finish(process)
    out.unlink(missing_ok=True)  # it was done already
    text = merge(recipe(data), out, "--resume", ranks=again)
    assert "going on from" in text
    assert content(out) == whole


@pytest.fixture(scope="module")
def seconds(data, whole, tmp_path_factory):
    """What an uninterrupted run on so many ranks takes."""
    folder, found = tmp_path_factory.mktemp("seconds"), {}
    for ranks in (1, 2, 3, 4):
        began = time.monotonic()
        merge(recipe(data), folder / f"{ranks}.h5", ranks=ranks)
        found[ranks] = time.monotonic() - began
    return found


@pytest.mark.full
@pytest.mark.parametrize("attempt", range(20))
def test_killed_at_any_moment(attempt, data, whole, seconds, tmp_path):
    """kill -9 of everything, once or twice, at random moments from the start to the end; then on another number of ranks, and
    with models that other numbers of ranks share."""
    chance, out = random.Random(attempt), tmp_path / "out.h5"
    config = tools.write_config(tmp_path / "c.yaml", recipe(data))
    ranks = [chance.choice((1, 2, 3, 4))]

    def shared():
        return "--set", f"search.ranks_per_model={chance.choice((1, 2, 4))}"

    for _ in range(chance.choice((1, 2))):
        process = tools.start(tools.MERGE, config, out, "--resume", *shared(), ranks=ranks[-1])
        moment = chance.uniform(0.1, 1.05 * seconds[ranks[-1]])
        time.sleep(moment)
        tools.kill_session(process.pid)
        tools.finish(process)
        print(f"{ranks[-1]} ranks, {moment:.2f} of {seconds[ranks[-1]]:.2f} s: snapshot {snapshot_of(out).exists()}, "
              f"output {out.exists()}")  # fmt: skip
        ranks.append(chance.choice([n for n in (1, 2, 3, 4) if n != ranks[-1]]))
    merge(recipe(data), out, "--resume", *shared(), ranks=ranks[-1])
    assert content(out) == whole


def test_a_warning_stops_and_saves(data, whole, tmp_path):
    """SIGUSR1, which mpirun passes on: exit code 4 within a batch, and nothing is scored twice."""
    out = tmp_path / "out.h5"
    process = start(recipe(data), out, 2)
    process.send_signal(signal.SIGUSR1)
    result = tools.finish(process)
    assert result.code == 4, result
    assert result.err.count("run again with --resume to go on from") == 1
    assert not out.exists()
    merge(recipe(data), out, "--resume", ranks=3)
    assert content(out) == whole


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_names_its_snapshot(sent, data, whole, tmp_path):
    """Without mpirun, which may end before it has passed the line on."""
    out = tmp_path / "out.h5"
    process = start(recipe(data), out, 0)
    process.send_signal(sent)
    result = tools.finish(process)
    assert result.code == -sent, result
    assert result.err.count(f"interrupted; run again with --resume to go on from {snapshot_of(out)}") == 1, result
    merge(recipe(data), out, "--resume", ranks=2)
    assert content(out) == whole


def test_a_time_limit(data, whole, tmp_path):
    """There are more generations than any time is enough for; an extended search may have them."""
    out = tmp_path / "out.h5"
    for _ in range(2):
        text = merge(recipe(data, max_time=2, generations=100000), out, "--resume", code=4)
        assert "run again with --resume" in text
    merge(recipe(data), out, "--resume", ranks=3)
    assert content(out) == whole


def test_without_a_snapshot_it_starts_and_complete_it_rests(data, whole, tmp_path):
    out = tmp_path / "out.h5"
    assert "going on from" not in merge(recipe(data), out, "--resume")
    assert content(out) == whole
    before = out.stat().st_mtime_ns
    assert "nothing is left to do" in merge(recipe(data), out, "--resume", ranks=1)
    assert out.stat().st_mtime_ns == before


def test_between_several_outputs(data, tmp_path):
    """Of several outputs only those are made that are not there yet."""
    config = recipe(data, generations=2, stages=["prune"])
    config["nps"]["application"] = "transfer"
    out = tmp_path / "slim-{name}.h5"
    merge(config, out)
    want = {task: content(tmp_path / f"slim-{task}.h5") for task in TASKS}
    (tmp_path / "slim-blur.h5").unlink()
    kept = (tmp_path / "slim-plain.h5").stat().st_mtime_ns
    assert "slim-plain.h5 is there already" in merge(config, out, "--resume", ranks=3)
    assert (tmp_path / "slim-plain.h5").stat().st_mtime_ns == kept
    assert {task: content(tmp_path / f"slim-{task}.h5") for task in TASKS} == want


def test_a_finished_search_is_extended(data, whole, tmp_path):
    short, out = tmp_path / "short.h5", tmp_path / "out.h5"
    kept = {"snapshot": str(tmp_path / "kept.h5")}
    merge(recipe(data, generations=2, **kept), short)
    log = tmp_path / "log"
    merge(recipe(data, **kept), out, "--resume", "--log", log)
    assert content(out) == whole
    assert any(json.loads(line)["event"] == "generation" for line in log.read_text().splitlines())


def test_without_resume_an_old_snapshot_is_kept_aside(data, tmp_path):
    out = tmp_path / "out.h5"
    merge(recipe(data, generations=1), out)
    before = snapshot_of(out).read_bytes()
    assert "a snapshot of an earlier search" in merge(recipe(data, generations=1, sigma=0.2), out, "--force")
    assert (tmp_path / "out.h5.snapshot.h5.old").read_bytes() == before


# ---- inputs that change, runs at once --------------------------------------------------------------------------------


def other_model(tmp_path, by):
    """A copy of a model, changed by so much."""
    tensors = dict(tools.read_model(FAMILY / "blur"))
    dtype, array = tensors["vit.layernorm.bias"]
    tensors["vit.layernorm.bias"] = (dtype, array + np.float32(by))
    return tools.write_folder(tmp_path / "blur", tensors, json.loads((FAMILY / "blur/config.json").read_text()))


@pytest.mark.parametrize("form", ["out.h5", "out"])
def test_an_output_of_changed_inputs_is_not_complete(form, data, tmp_path):
    """By their contents: a file that was only touched has not changed."""
    config, out = recipe(data, generations=1, stages=["fuse"]), tmp_path / form
    config["models"][1]["model"] = str(other_model(tmp_path, 0))
    merge(config, out)
    for _ in range(2):  # touched; then untouched since the last look
        (tmp_path / "blur/model.safetensors").touch()
        assert "nothing is left to do" in merge(config, out, "--resume", ranks=3)
    other_model(tmp_path, 1e-3)
    text = merge(config, out, "--resume", code=2)
    assert f"was made by this recipe, but {tmp_path}/blur/model.safetensors has changed since" in text
    assert "exists already; --force replaces it" in text


def test_an_input_that_changes_during_the_run(data, tmp_path):
    """It is older than the output by then, and yet not what the output was made of."""
    config, out = recipe(data, max_time=0, generations=15), tmp_path / "out.h5"
    config["models"][1]["model"] = str(other_model(tmp_path, 0))
    process = start(config, out, 2)
    other_model(tmp_path, 1e-3)
    result = tools.finish(process)
    assert result.code == 0 and f"{tmp_path}/blur/model.safetensors was touched while the run read it" in result.err, result
    text = merge(config, out, "--resume", code=2)
    assert f"was made by this recipe, but {tmp_path}/blur/model.safetensors has changed since" in text


def test_one_search_at_a_time(data, whole, tmp_path):
    """A second run to the same output, or with the same snapshot, ends at once and disturbs nothing."""
    out, kept = tmp_path / "out.h5", tmp_path / "kept.h5"
    config = recipe(data, generations=100000, snapshot=str(kept))
    process = tools.start(tools.MERGE, tools.write_config(tmp_path / "first.yaml", config), out, ranks=2)
    assert tools.wait_for(kept.exists, 60), tools.finish(process, 1)
    assert f"{out}: another run is writing it" in merge(recipe(data), out, code=1)
    assert f"{kept}: another run is writing it" in merge(config, tmp_path / "other.h5", code=1)
    process.send_signal(signal.SIGUSR1)
    assert tools.finish(process).code == 4
    merge(recipe(data, snapshot=str(kept)), out, "--resume")
    assert content(out) == whole
    assert not list(tmp_path.glob(".*.lock"))


# ---- snapshots that are refused -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(data, tmp_path_factory):
    """The bytes of a snapshot."""
    out = tmp_path_factory.mktemp("kept") / "out.h5"
    merge(recipe(data, generations=1), out)
    return snapshot_of(out).read_bytes()


def refused(config, kept, tmp_path, message):
    (tmp_path / "kept.h5").write_bytes(kept)
    config["search"]["snapshot"] = str(tmp_path / "kept.h5")
    text = merge(config, tmp_path / "out.h5", "--resume", code=3)
    assert message in text and text.count("error:") == 1, text
    assert (tmp_path / "kept.h5").read_bytes() == kept
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("change, message", [
    (lambda c: c.update(seed=6), 'it has "seed: 5", this one "seed: 6"'),
    (lambda c: c["search"].update(sigma=0.2), 'it has "  sigma: 0.3", this one "  sigma: 0.2"'),
    (lambda c: c["fitness"].update(batch=20), 'it has "  batch: 16", this one "  batch: 20"'),
])  # fmt: skip
def test_another_recipe(change, message, data, kept, tmp_path):
    config = recipe(data, generations=1)
    change(config)
    refused(config, kept, tmp_path, message)


def test_other_data(data, kept, tmp_path):
    with h5py.File(data) as source, h5py.File(tmp_path / "data.h5", "w") as target:
        for task in TASKS:
            source.copy(task, target)
        target["blur/inputs"][7, 0, 0, 0] += 1
    refused(recipe(tmp_path / "data.h5", generations=1), kept, tmp_path, 'it has "data of task blur: ')


def test_another_model(data, kept, tmp_path):
    config = recipe(data, generations=1)
    config["models"][1]["model"] = str(other_model(tmp_path, 1e-3))
    refused(config, kept, tmp_path, 'it has "model file model.safetensors: ')


def edit(kept, tmp_path, change):
    path = tmp_path / "edited.h5"
    path.write_bytes(kept)
    with h5py.File(path, "r+") as file:
        change(file)
    return path.read_bytes()


DAMAGES = {
    "truncated": (lambda kept, _: kept[: len(kept) // 2], "kept.h5"),
    "no HDF5": (lambda kept, _: b"x" * 1000, "is not an HDF5 file"),
    "a model": (lambda kept, t: edit(kept, t, lambda f: f.attrs.modify("format", "nps-merged")), "is no snapshot of a search"),
    "version": (lambda kept, t: edit(kept, t, lambda f: f.attrs.modify("format_version", 2)), "another version of the program"),
    "a changed score": (lambda kept, t: edit(kept, t, lambda f: f["scores/correct"].write_direct(f["scores/correct"][:] + 1)), "checksum of its scores"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_snapshots(case, data, kept, tmp_path):
    damage, message = DAMAGES[case]
    refused(recipe(data, generations=1), damage(kept, tmp_path), tmp_path, message)
