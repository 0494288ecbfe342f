"""The job scripts on a real Slurm of four emulated nodes."""

import json
import re

import pytest
import slurm
import tools

JOBS = tools.ROOT / "jobs"
# Emulated nodes share a host, where Open MPI takes them for several and must not use shared memory between them.
JOB_ENVIRONMENT = {"NPS_MERGE": str(tools.MERGE), "OMPI_MCA_btl": "self,tcp"}


@pytest.fixture(scope="module")
def cluster():
    found = slurm.Slurm()
    yield found
    found.stop()


def submit(cluster, folder, *words, env=None):
    return cluster.submit(*words, env={**JOB_ENVIRONMENT, **(env or {})}, cwd=folder)


def assert_completed(cluster, job, folder):
    for one in cluster.wait(job):
        texts = "\n".join(p.read_text(errors="replace") for p in folder.glob("*.out"))
        assert one["JobState"] == "COMPLETED" and one["ExitCode"] == "0:0", f"{one}\n{texts}\n{cluster.logs()}"


def ranks_in(log):
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return events[-1]["ranks"]


@pytest.mark.parametrize("nodes", [2, 4])
def test_submit_and_complete(nodes, cluster, data, whole, tmp_path):
    config = tools.write_config(tmp_path / "c.yaml", tools.small_search(data))
    job = submit(cluster, tmp_path, "-N", nodes, "--ntasks-per-node=1", JOBS / "nps-merge.sbatch", config, "out.h5",
                 "--log", "log")  # fmt: skip
    assert_completed(cluster, job, tmp_path)
    assert ranks_in(tmp_path / "log") == nodes
    assert tools.search_content(tmp_path / "out.h5") == whole


def test_warn_requeue_resume(cluster, data, whole, tmp_path):
    """The warning stops the search, the job is queued again and goes on. It cannot be done before the warning, as there are
    too many generations until then; which an extended search may have."""
    config = tools.write_config(tmp_path / "c.yaml", tools.small_search(data, generations=100000))
    job = submit(cluster, tmp_path, "-N", 2, "--ntasks-per-node=1", JOBS / "nps-merge.sbatch", config, "out.h5")
    snapshot = tmp_path / "out.h5.snapshot.h5"
    assert tools.wait_for(snapshot.exists, 60), f"{cluster.show(job)}\n{cluster.logs()}"
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    again = lambda: cluster.show(job)[0]["JobState"] == "PENDING"
    assert tools.wait_for(again, 60, 0.1), f"{cluster.show(job)}\n{cluster.logs()}"
    assert not (tmp_path / "out.h5").exists()
    tools.write_config(config, tools.small_search(data))
    # Slurm lets two minutes pass before a job that was queued again starts. Not at once: it revokes what it has signed for
    # the job until then, in whole seconds.
    start = lambda: cluster.call("scontrol", "update", f"jobid={job}", "StartTime=now+3", check=False).returncode == 0
    assert tools.wait_for(start, 30, 0.2), f"{cluster.show(job)}\n{cluster.logs()}"
    assert_completed(cluster, job, tmp_path)
    text = (tmp_path / f"nps-merge-{job}.out").read_text()
    assert text.count("stopped as asked") == 1 and text.count("going on from") == 1, text
    assert cluster.show(job)[0]["Restarts"] == "1"
    assert tools.search_content(tmp_path / "out.h5") == whole


def test_an_array_over_configs(cluster, data, tmp_path):
    configs = []
    for seed in (5, 6, 7, 8):
        ending = "yml" if seed == 8 else "yaml"
        configs.append(tools.write_config(tmp_path / f"seed-{seed}.{ending}", {**tools.small_search(data, generations=1, stages=["fuse"]), "seed": seed}))
    job = submit(cluster, tmp_path, "--array=1-4", "--ntasks-per-node=1", JOBS / "sweep.sbatch", "results", *configs,
                 "--", "--quiet")  # fmt: skip
    assert_completed(cluster, job, tmp_path)
    names = sorted(p.name for p in (tmp_path / "results").glob("*.h5") if "snapshot" not in p.name)
    assert names == [f"seed-{seed}.h5" for seed in (5, 6, 7, 8)]
    for config in configs:
        alone = tmp_path / f"alone-{config.stem}.h5"
        tools.merge(config, alone)
        assert tools.search_content(tmp_path / "results" / f"{config.stem}.h5") == tools.search_content(alone)


def test_mistakes_are_told(cluster, data, tmp_path):
    """A script that cannot run says why, and ends with 2."""
    config = tools.write_config(tmp_path / "c.yaml", tools.small_search(data))
    cases = {
        "usage: sbatch": submit(cluster, tmp_path, "--ntasks-per-node=1", JOBS / "nps-merge.sbatch"),
        "no-such-program was not found": submit(cluster, tmp_path, "--ntasks-per-node=1", JOBS / "nps-merge.sbatch",
                                                config, env={"NPS_MERGE": "no-such-program"}),
        "submit with --array=1-1": submit(cluster, tmp_path, "--array=2", "--ntasks-per-node=1", JOBS / "sweep.sbatch",
                                          "results", config),
        "two configs are named c: both would make results/c.h5": submit(
            cluster, tmp_path, "--array=1", "--ntasks-per-node=1", JOBS / "sweep.sbatch", "results", config, "other/c.yml"),
    }  # fmt: skip
    for message, job in cases.items():
        assert [one["ExitCode"] for one in cluster.wait(job)] == ["2:0"]
        name = rf"nps-[a-z]+-{job}(-\d+)?\.out"
        [text] = [p.read_text() for p in tmp_path.glob("*.out") if re.fullmatch(name, p.name)]
        assert message in text
