"""One rank of several dies, hangs, or meets an error: all end, or the rank is named; the snapshot is whole."""

import os
import re
import signal
import subprocess
import tempfile

import h5py
import pytest
import tools

END_LIMIT = 30  # seconds in which all ranks have to end; a few are enough where the machine is idle
LONG = 100000  # generations that no test waits for


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """The library that lets files hang or fail."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = tools.ROOT / "tests/python/faults.c"
    words = [os.environ.get("CC", "gcc").split()[-1], "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    built = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    return library


class Run:
    """A run whose stderr can be read while it goes on."""

    def __init__(self, config, out, *options, ranks, env=None):
        self.log = tempfile.TemporaryFile("w+")
        file = tools.write_config(out.with_suffix(".yaml"), config)
        words = tools.command(tools.MERGE, file, out, *options, ranks=ranks)
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log,
                                        env=tools.environment(env), start_new_session=True)  # fmt: skip

    def told(self):
        return os.pread(self.log.fileno(), 1 << 24, 0).decode(errors="replace")  # ranks write where the offset is

    def is_told(self, text):
        return tools.wait_for(lambda: text in self.told(), tools.TIME_LIMIT, 0.05)

    def ranks(self):
        return tools.ranks_of(self.process.pid)

    def end(self, limit=tools.TIME_LIMIT):
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {limit} s: {self.told()}") from None
        finally:
            tools.kill_session(self.process.pid)


@pytest.fixture
def start():
    """Starts runs, of which nothing is left after the test."""
    runs = []

    def one(*arguments, **more):
        runs.append(Run(*arguments, **more))
        return runs[-1]

    yield one
    for run in runs:
        tools.kill_session(run.process.pid)


def snapshot_of(out):
    return out.with_name(out.name + ".snapshot.h5")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_dies(victim, start, data, whole, tmp_path):
    out = tmp_path / "out.h5"
    run = start(tools.small_search(data, generations=LONG), out, ranks=3)
    assert tools.wait_for(snapshot_of(out).exists, 60), run.told()
    os.kill(sorted(run.ranks())[victim], signal.SIGKILL)
    assert tools.wait_for(lambda: not run.ranks(), END_LIMIT), "ranks hang"
    assert run.end(END_LIMIT) != 0 and not out.exists()
    with h5py.File(snapshot_of(out)) as file:
        assert len(file["scores/key"]) > 0
    assert "going on from" in tools.merge(tools.small_search(data), out, "--resume", ranks=2).out
    assert tools.search_content(out) == whole


def test_a_hanging_file_is_named(start, faults, data, whole, tmp_path):
    """By the rank that reads it, with its host; the run goes on when the file does."""
    out, hang = tmp_path / "out.h5", tmp_path / "hang"
    hang.touch()
    env = {"LD_PRELOAD": str(faults), "NPS_FAULT": f"1 /blur/model.safetensors {hang}", "NPS_WATCH_SECONDS": "0.5"}
    run = start(tools.small_search(data), out, ranks=2, env=env)
    model = tools.SMALL_SEARCH / "blur/model.safetensors"
    assert run.is_told(f"nps-merge: rank 1 on {os.uname().nodename} has been reading {model} for "), run.told()
    assert run.is_told("nps-merge: rank 0 on"), run.told()
    assert "has been waiting for the other ranks for" in run.told()
    hang.unlink()
    assert run.end() == 0, run.told()
    assert tools.search_content(out) == whole


def test_a_stopped_rank_is_waited_for(start, data, whole, tmp_path):
    out = tmp_path / "out.h5"
    run = start(tools.small_search(data, generations=LONG), out, ranks=2, env={"NPS_WATCH_SECONDS": "0.5"})
    assert tools.wait_for(snapshot_of(out).exists, 60), run.told()
    last = sorted(run.ranks())[-1]
    os.kill(last, signal.SIGSTOP)
    assert run.is_told("has been waiting for the other ranks for"), run.told()
    os.kill(last, signal.SIGCONT)
    run.process.send_signal(signal.SIGUSR1)
    assert run.end() == 4, run.told()
    tools.merge(tools.small_search(data), out, "--resume")
    assert tools.search_content(out) == whole


def memory_without_factors(config, out):
    """A limit under which a rank keeps its singular factors in a file."""
    plan = tools.merge({**config, "resources": {"memory_per_rank": "1GiB"}}, out, "--plan").out
    all_of_it, factors = (float(re.search(rf"{what}: (?:at most )?([\d.]+) MiB", plan).group(1))
                          for what in ("memory while scoring", "singular factors"))  # fmt: skip
    return f"{int(1024 * (all_of_it - factors / 2))}KiB"


def test_one_rank_alone_meets_an_error(start, faults, data, tmp_path):
    """It cannot read its singular factors back: all end with one message."""
    config = tools.small_search(data, generations=LONG, ranks_per_model=1)
    out, spill = tmp_path / "out.h5", tmp_path / "spill"
    config["nps"]["partition"] = "singular"
    config["resources"] = {"memory_per_rank": memory_without_factors(config, out)}
    spill.mkdir()
    env = {"TMPDIR": str(spill), "SLURM_TMPDIR": "", "LD_PRELOAD": str(faults), "NPS_FAULT": f"1 {spill}/ -"}
    run = start(config, out, ranks=2, env=env)
    assert run.end() == 1, run.told()
    assert run.told().count("error:") == 1 and "Input/output error" in run.told(), run.told()
