"""The command evaluator: it scores what the native one scores, and nothing that a command does stops or spoils a run."""

import json
import os
import pathlib
import signal
import sys

import h5py
import numpy as np
import pytest
import tools
from commands import FOLDERS, by_command, one_generation, processes_of


def history(path, search):
    with h5py.File(path) as file:
        group = file[f"search/{search}"]
        return {name: group[name][:] for name in ("genome", "generation", "candidate", "correct", "total", "nll_sum")}


def expect_same_search(path, native, searches):
    """The same candidates, counts and result; the nll differs by rounding."""
    assert tools.same_tensors(tools.read_model(path), tools.read_model(native))
    for name in searches:
        a, b = history(path, name), history(native, name)
        for key in a:
            if key == "nll_sum":
                assert np.allclose(a[key], b[key], rtol=1e-5, atol=1e-4), name
            else:
                assert np.array_equal(a[key], b[key]), (name, key)


# ---- the same as the native evaluator ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric,holdout,alone", [("nll", 0, 1), ("accuracy", 0.25, 2)])
def test_scores_are_the_native_ones(metric, holdout, alone, few, shared, tmp_path):
    """By processes of single ranks, and by one of three ranks that share the models."""
    config = one_generation(few)
    config["fitness"].update({"metric": metric, "holdout": holdout})
    tools.merge(config, tmp_path / "native.h5")
    found = set()
    for ranks, together in ((alone, 0), (3, 3)):
        out = tmp_path / f"{ranks}.h5"
        config["search"]["ranks_per_model"] = together
        result = tools.merge(by_command(config, shared), out, ranks=ranks)
        assert "worst" not in result.err, result
        expect_same_search(out, tmp_path / "native.h5", ["prune/plain", "prune/blur"])
        found.add(str(sorted(tools.search_content(out).items())))
    assert len(found) == 1, "the number of ranks or groups changes bytes"


def test_scores_on_digits_vit(shared, tmp_path):
    """All of the family's calibration data."""
    names = tools.TASKS["digits-vit"][:2]
    config = tools.recipe("digits-vit", "nps", names=names, seed=3)
    data = str(tools.MODELS / "digits-vit/calibration.h5")
    config["nps"] = {"subspaces": 8, "density": 0.1}
    config["search"] = {"stages": ["joint"], "generations": 1, "population": 4, "max_evaluations": 5}
    config["fitness"] = {"metric": "accuracy", "holdout": 0, "tasks": [{"name": name, "data": data} for name in names]}
    tools.merge(config, tmp_path / "native.h5")
    tools.merge(by_command(config, shared), tmp_path / "out.h5", ranks=2)
    expect_same_search(tmp_path / "out.h5", tmp_path / "native.h5", ["joint"])


# ---- faults ------------------------------------------------------------------------------------------------------------

FAULTS = {
    "die": "ended with exit code 1",
    "exit": "ended with exit code 3",
    "crash": "was ended by signal 11",
    "hang": "gave no answer within 4 s",
    "hang with children": "gave no answer within 4 s",
    "nonsense": "answered with what is no JSON (",
    "binary": "answered with what is no JSON (",
    "list": "answered with what is no JSON object; it printed the line: [1, 2, 3]",
    "half a line": 'ended with exit code 0; it printed half a line: {"id": ',
    "half a line, then silence": 'gave no answer within 4 s; it printed half a line: {"id": ',
    "flood": "printed more than 16 MiB without an end of line; it printed half a line: xxxx",
    "noise": None,
    "close": "closed its stdout",
    "another id": 'answered another request: expected "id": ',
    "nan": "answered with what is no JSON (",
    "huge": "answered with what is no JSON (",
    "too many": 'expected "correct", a whole number from 0 to its "total", 16',
    "no total": 'expected "total", a whole number of samples from 1 on',
    "another total": 'expected "total": 16, as in the first answer',
    "text": 'expected "nll_sum", a finite number',
    "a task too few": 'expected an object in "scores"',
    "error": "the command says: I do not like it",
    "two answers": None,
}  # fmt: skip


def failures(log):
    """{candidate: why} of the first search's first generation."""
    found = {}
    for line in log.read_text().splitlines():
        note = json.loads(line)
        if note["event"] == "note" and " of generation 1 of prune/plain counts as the worst: " in note["text"]:
            what, why = note["text"].split(" of generation 1 of prune/plain counts as the worst: ")
            found[int(what.split()[-1])] = why
    return found


@pytest.mark.parametrize("part", range(0, len(FAULTS), 8))
def test_faults(part, few, shared, tmp_path):
    """Each spoils one candidate alone, and the report says why; two answers spoil none."""
    faults = list(FAULTS)[part : part + 8]
    config = one_generation(few, population=10)
    tools.merge(by_command(config, shared, cheap=True), tmp_path / "good.h5")
    first = 6  # the base, two models, the starts of two searches
    spoiled = by_command(config, shared, timeout=4, cheap=True, faults={first + i: fault for i, fault in enumerate(faults)})
    log = tmp_path / "log"
    result = tools.merge(spoiled, tmp_path / "out.h5", "--log", log)
    told = failures(log)
    expected = {i: FAULTS[fault] for i, fault in enumerate(faults) if FAULTS[fault]}
    assert told.keys() == expected.keys(), result
    for i, message in expected.items():
        assert message in told[i], (faults[i], told[i])
        if i < len(faults) and faults[i] != "die" and "the command" not in told[i]:
            assert f"about to be bad: {faults[i]}" in told[i], told[i]
    if "die" in faults:
        assert "RuntimeError: the model is too good" in told[faults.index("die")]
    assert result.err.count("printed more on stdout than its answer") == ("two answers" in faults), result
    ours, good = history(tmp_path / "out.h5", "prune/plain"), history(tmp_path / "good.h5", "prune/plain")
    assert np.array_equal(ours["genome"][:-2], good["genome"][:-2]), "but the means, which follow from the scores"
    for row in range(len(ours["total"]) - 2):
        if row - 1 in expected:
            assert ours["total"][row, 0] == 0 and np.isnan(ours["nll_sum"][row, 0])
        else:
            assert all(ours[key][row, 0] == good[key][row, 0] for key in ("correct", "total", "nll_sum"))


def test_who_asks_does_not_matter(few, shared, tmp_path):
    """Which candidates fail depends on them alone: the same bytes on any number of groups."""
    config = by_command(one_generation(few, population=8), shared, cheap=True, some="die")
    contents = set()
    for ranks in (1, 3):
        tools.merge(config, tmp_path / f"{ranks}.h5", ranks=ranks)
        contents.add(str(sorted(tools.search_content(tmp_path / f"{ranks}.h5").items())))
    total = history(tmp_path / "1.h5", "prune/plain")["total"]
    assert len(contents) == 1 and 0 < (total == 0).sum() < len(total)


def test_a_command_that_always_fails(few, shared, tmp_path):
    """The run ends with the command's last message; with candidates alone that fail it ends after their generation."""
    config = one_generation(few)
    result = tools.merge(by_command(config, shared, cheap=True, always="die"), tmp_path / "out.h5", code=1)
    error = result.err.split("error: ")[1]
    assert "neither the base nor any of the models could be scored" in error, result
    assert "ended with exit code 1" in error and "RuntimeError: the model is too good" in error, result
    assert result.err.count("error: ") == 1 and not (tmp_path / "out.h5").exists()
    config = by_command(one_generation(few), shared, cheap=True, faults={i: "error" for i in range(6, 20)})
    error = tools.merge(config, tmp_path / "out.h5", code=1).err.split("error: ")[1]
    assert "search prune/plain: every candidate of generation 1 failed: the command says: I do not like it" in error, error


def test_a_generation_that_fails_is_asked_for_again(few, shared, tmp_path):
    """Also where a search beside it went well: with --resume its candidates are no failures any more."""
    bad = tmp_path / "bad"
    config = by_command(one_generation(few), shared, cheap=True, **{"while": str(bad)}, faults={i: "error" for i in range(10, 14)})
    tools.merge(config, tmp_path / "good.h5")
    bad.touch()
    error = tools.merge(config, tmp_path / "out.h5", code=1).err
    assert "search prune/blur: every candidate of generation 1 failed: the command says: I do not like it" in error, error
    bad.unlink()
    result = tools.merge(config, tmp_path / "out.h5", "--resume")
    assert "going on from" in result.out and "worst" not in result.err, result
    assert tools.search_content(tmp_path / "out.h5") == tools.search_content(tmp_path / "good.h5")


def held_out(few, shared, final, **behaviour):
    """One search on two tasks, with held-out samples."""
    config = tools.small_search(few, stages=["joint"], generations=2, population=4, final=final)
    return by_command(config, shared, cheap=True, fitness={"holdout": 0.5}, **behaviour)


def test_held_out_requests_that_fail(few, shared, tmp_path):
    """Of the start: nothing is doubted. Of the mean: it is not chosen."""
    tell = tmp_path / "tell"
    tools.merge(held_out(few, shared, "best", tell=str(tell)), tmp_path / "good.h5")
    requests = [json.loads(line)["request"] for line in tell.read_text().splitlines()]
    ids = [request["id"] for request in requests if request["held"] and request["id"] > 6]  # after the base and two models
    assert len(ids) == 5, "the start, the best of two generations, two means"
    for final, spoiled in (("best", 0), ("mean", 3)):
        config = held_out(few, shared, final, faults={ids[spoiled]: "error"})
        tools.merge(config, tmp_path / f"{final}.h5")
        with h5py.File(tmp_path / f"{final}.h5") as file:
            group = file["search/joint"]
            held, candidate, best = group["held_fitness"][:], group["candidate"][:], int(group.attrs["best"])
        assert not np.isnan(held[best]), final
        if final == "best":
            assert np.isnan(held[0]) and held[best] == np.nanmin(held)
        else:
            assert np.isnan(held[candidate == -1]).all() and candidate[best] != -1


def test_averages_are_of_all_tasks(few, shared, tmp_path):
    """Where one of them has no score there is no average."""
    config = by_command(one_generation(few), shared, cheap=True, faults={3: "error"})
    config["search"]["algorithm"] = "none"
    tools.merge(config, tmp_path / "out.h5", "--log", tmp_path / "log")
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    average = next(event for event in events if event["event"] == "scores")["average"]["calibration"]
    assert average["fine_tuned"]["nll"] is None and average["base"]["nll"] is not None


def test_models_that_cannot_be_written(few, shared, tmp_path):
    """What was scored before is not lost."""
    bad = tmp_path / "bad"
    config = by_command(one_generation(few), shared, cheap=True, **{"while": str(bad)}, faults={8: "remove the folder"})
    tools.merge(config, tmp_path / "good.h5")
    bad.touch()
    error = tools.merge(config, tmp_path / "out.h5", code=1).err.split("error: ")[1:]
    assert len(error) == 1 and "No such file or directory" in error[0], error
    bad.unlink()
    assert "going on from" in tools.merge(config, tmp_path / "out.h5", "--resume").out
    assert tools.search_content(tmp_path / "out.h5") == tools.search_content(tmp_path / "good.h5")


def test_a_command_that_is_not_there(few, shared, tmp_path):
    config = by_command(one_generation(few), shared)
    config["fitness"]["command"] = ["no-such-program", "x"]
    for options in (["--check"], []):
        result = tools.merge(config, tmp_path / "out.h5", *options, code=2)
        assert "fitness.command: no-such-program: there is no such program in PATH" in result.err, result
    (tmp_path / "text").write_text("no program")
    for path, message in ((tmp_path / "missing", "there is no such program"), (tmp_path / "text", "is no program that can be run")):
        config["fitness"]["command"] = [str(path)]
        assert f"fitness.command: {path}: {message}" in tools.merge(config, tmp_path / "out.h5", code=2).err
    (tmp_path / "script").write_text("#!/no/such/interpreter\n")
    (tmp_path / "script").chmod(0o755)
    config["fitness"]["command"] = [str(tmp_path / "script")]
    result = tools.merge(config, tmp_path / "out.h5", code=1)
    assert "script ended with exit code 127" in result.err and "cannot be run: No such file or directory" in result.err, result
    config["fitness"]["command"] = [sys.executable, "no-such-script.py"]
    assert "can't open file" in tools.merge(config, tmp_path / "out.h5", code=1).err


# ---- the process -------------------------------------------------------------------------------------------------------


def test_what_the_process_gets(few, shared, tmp_path):
    """No variable and no open file of MPI, a group of its own, a complete folder; one process a group while all is well."""
    tell = tmp_path / "tell"
    config = by_command(one_generation(few), shared, cheap=True, tell=str(tell))
    tools.merge(config, tmp_path / "out.h5", ranks=2)
    lines = [json.loads(line) for line in tell.read_text().splitlines()]
    for line in lines:
        assert not [name for name in line["environment"] if name.startswith(("OMPI_", "PMIX_", "PMI_", "PRTE_"))]
        assert line["files"] == 5  # stdin, stdout, stderr, the script's log, the folder that is listed
        assert line["group"] == line["pid"]
        assert line["folder"] == ["config.json", "model.safetensors"]
        about = line["request"]["about"]
        assert set(about) == set(line["request"]["tasks"])
        for task, known in about.items():
            assert known["group"] == task and known["data"] == str(few.resolve()) and known["model"] == task
            assert pathlib.Path(known["head"]) == (tools.SMALL_SEARCH / task).resolve()
    groups = {line["environment"]["NPS_GROUP"]: line["pid"] for line in lines}
    assert set(groups) <= {"0", "1"} and {line["pid"] for line in lines} == set(groups.values())
    for group in groups:
        ids = [line["request"]["id"] for line in lines if line["environment"]["NPS_GROUP"] == group]
        assert ids == list(range(1, len(ids) + 1))


def test_a_command_that_ends_after_each_answer(few, shared, tmp_path):
    config = one_generation(few)
    tools.merge(by_command(config, shared, cheap=True), tmp_path / "long.h5")
    config = by_command(config, shared, cheap=True, **{"one shot": True})
    result = tools.merge(config, tmp_path / "short.h5")
    assert "worst" not in result.err, result
    assert tools.search_content(tmp_path / "short.h5") == tools.search_content(tmp_path / "long.h5")


def hanging(few, shared, tmp_path):
    """A run whose first candidate hangs, with children in sessions of their own."""
    tell = tmp_path / "tell"
    config = by_command(one_generation(few), shared, timeout=1000, cheap=True, tell=str(tell), faults={6: "hang with children"})
    return config, lambda: tell.exists() and len(tell.read_text().splitlines()) == 6


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_when_the_run_is_killed(how, few, shared, tmp_path):
    config, hangs = hanging(few, shared, tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    process = tools.start(tools.MERGE, tmp_path / "config.yaml", tmp_path / "out.h5")
    try:
        assert tools.wait_for(hangs, limit=60)
        assert len(list(shared.glob(FOLDERS))) == 1
        assert tools.wait_for(lambda: len(processes_of(tmp_path / "tell")) >= 3), "it begins its children after it has told"
        process.send_signal(how)
        process.wait(60)
        assert tools.wait_for(lambda: not processes_of(tmp_path / "tell"), limit=30), processes_of(tmp_path / "tell")
        assert tools.wait_for(lambda: not list(shared.iterdir()), limit=30)
    finally:
        process.kill()
        tools.finish(process)


@pytest.mark.parametrize("how", ["rank", signal.SIGKILL, signal.SIGTERM])
def test_nothing_stays_when_a_job_is_killed(how, few, shared, tmp_path):
    """Two commands that hang, when one rank is killed or mpirun is ended; no rank hangs either."""
    tell = tmp_path / "tell"
    config = by_command(one_generation(few), shared, timeout=1000, cheap=True, tell=str(tell), always="hang with children")
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    process = tools.start(tools.MERGE, tmp_path / "config.yaml", tmp_path / "out.h5", ranks=2)
    try:
        assert tools.wait_for(lambda: len(processes_of(tell)) >= 8, limit=60), "two supervisors, commands, their children"
        assert len(list(shared.glob(FOLDERS))) == 2
        if how == "rank":
            os.kill(sorted(tools.ranks_of(process.pid))[1], signal.SIGKILL)
        else:
            process.send_signal(how)
        assert tools.wait_for(lambda: not tools.ranks_of(process.pid), limit=30), "ranks hang"
        assert tools.wait_for(lambda: not processes_of(tell), limit=30), processes_of(tell)
        assert tools.wait_for(lambda: not list(shared.iterdir()), limit=30)
    finally:
        process.kill()
        assert tools.finish(process).code != 0


def test_a_run_that_is_asked_to_stop(few, shared, tmp_path):
    """It does not wait for the answer, and goes on later."""
    config, hangs = hanging(few, shared, tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    process = tools.start(tools.MERGE, tmp_path / "config.yaml", tmp_path / "out.h5")
    assert tools.wait_for(hangs, limit=60)
    process.send_signal(signal.SIGUSR1)
    result = tools.finish(process)
    assert result.code == 4 and "--resume" in result.err, result
    del config["fitness"]["command"]
    good = by_command(config, shared, cheap=True)
    tools.merge({**config, "fitness": {**config["fitness"], "command": good["fitness"]["command"]}}, tmp_path / "good.h5")
    assert len(list(shared.iterdir())) == 0


def test_folders_of_killed_runs_are_removed(few, shared, tmp_path):
    """Those of this host that nobody holds; not others."""
    stale = shared / FOLDERS.replace("*", "abcdef")
    other = shared / "nps-merge-another.host-abcdef"
    for folder in (stale, other):
        (folder / "3").mkdir(parents=True)
        (folder / "3/model.safetensors").write_bytes(b"x")
    tools.merge(by_command(one_generation(few), shared, cheap=True), tmp_path / "out.h5")
    assert list(shared.iterdir()) == [other]
    tools.shutil.rmtree(other)
    config = by_command(one_generation(few), tmp_path / "missing", cheap=True)
    for options in (["--check"], []):
        assert "fitness.directory: " in tools.merge(config, tmp_path / "out2.h5", *options, code=2).err


# ---- other scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["max", "min"])
def test_values(direction, few, shared, tmp_path):
    """Any number counts; the best candidate has the largest, or the smallest."""
    more = {"metric": "value", "direction": direction}
    config = by_command(one_generation(few), shared, cheap=True, always="value", fitness=more)
    result = tools.merge(config, tmp_path / "out", "--log", tmp_path / "log")
    with h5py.File(tmp_path / "out/findings.h5") as file:
        group = file["search/prune/plain"]
        values, best = group["nll_sum"][:, 0] / group["total"][:, 0], int(group.attrs["best"])
    values = values if direction == "min" else -values
    chosen = values.min() if direction == "min" else values.max()
    assert values[best] == chosen
    scores = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    scores = next(event for event in scores if event["event"] == "scores")
    assert scores["average"]["calibration"]["merged"]["accuracy"] is None
    assert scores["average"]["calibration"]["merged"]["value"] is not None, result
    assert "Values on the calibration data" in (tmp_path / "out/README.md").read_text()


def test_values_and_accuracies_do_not_mix_silently(few, shared, tmp_path):
    config = by_command(one_generation(few), shared, cheap=True, always="value", fitness={"metric": "accuracy"})
    error = tools.merge(config, tmp_path / "out.h5", code=1).err
    assert "task 'plain': expected \"correct\", a whole number" in error, error


def test_held_out_samples_are_asked_for(few, shared, tmp_path):
    """A command that does not say that it knows of them is not believed."""
    config = by_command(one_generation(few), shared, cheap=True, always="two answers", fitness={"holdout": 0.5})
    config["fitness"]["command"][-1] = json.dumps({"cheap": True, "always": "forgetful"})
    error = tools.merge(config, tmp_path / "out.h5", code=1).err
    assert 'expected "held": ' in error, error


# ---- the examples ------------------------------------------------------------------------------------------------------

EXAMPLES = tools.ROOT / "examples/evaluators"


def ask(script, *requests, options=(), env=None):
    """Requests to one process of an evaluator: its answers, and what it said on stderr."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = tools.subprocess.run(
        [sys.executable, str(EXAMPLES / script), "--device", "cpu", *options], input=lines, capture_output=True, text=True,
        timeout=tools.TIME_LIMIT, env=tools.environment(env))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def body(folder, strip="", leave=0):
    """The body of the model of blurred digits, with its prefix or without, and without its first tensors."""
    source = tools.MODELS / "digits-vit/blur"
    tensors = tools.read_safetensors(source / "model.safetensors")
    tensors = {name.removeprefix(strip): tensor for name, tensor in tensors.items() if name.startswith("vit.")}
    return tools.write_folder(folder, dict(list(tensors.items())[leave:]), json.loads((source / "config.json").read_text()))


def test_example_with_transformers(few, tmp_path):
    """Images and texts: the scores of nps-eval. The body of a candidate is scored, whatever its names, and not the one of the
    model that its head comes from; a model that lacks tensors is not scored."""
    texts = tmp_path / "texts.h5"
    with h5py.File(tools.MODELS / "bytes-llama/calibration.h5") as source, h5py.File(texts, "w") as target:
        target["c/input_ids"] = source["c/input_ids"][:4]
    plain, llama = (str(tools.MODELS / name) for name in ("digits-vit/plain", "bytes-llama/c"))
    images = {"data": str(few), "group": "plain"}
    cases = [(plain, {**images, "head": plain}), (llama, {"data": str(texts), "group": "c", "head": llama}),
             (body(tmp_path / "full"), {**images, "head": plain}), (body(tmp_path / "bare", "vit."), {**images, "head": plain}),
             (body(tmp_path / "poor", leave=3), images)]  # fmt: skip
    requests = [{"id": i, "model": str(model), "tasks": ["t"], "about": {"t": about}} for i, (model, about) in enumerate(cases)]
    replies, _ = ask("score_transformers.py", *requests)
    assert [reply["id"] for reply in replies] == list(range(len(cases)))
    for (model, about), reply in list(zip(cases, replies, strict=True))[:2]:
        done = tools.run(tools.EVAL, model, "--data", about["data"], "--group", about["group"], "--json")
        native, scores = json.loads(done.out)["tasks"][about["group"]], reply["scores"]["t"]
        assert scores["total"] == native["total"], reply
        assert abs(scores["correct"] - native["correct"]) <= (model == llama)
        assert scores["nll_sum"] / scores["total"] == pytest.approx(native["nll"], rel=1e-4)
    assert replies[2]["scores"] == replies[3]["scores"] != replies[0]["scores"]
    assert "neither " in replies[4]["error"] and "classifier.weight" in replies[4]["error"], replies[4]


def test_example_with_the_harness(tmp_path):
    """A module of that name stands for it: how it is called, and what is made of its results."""
    (tmp_path / "lm_eval.py").write_text(
        "import json, sys\n"
        "def simple_evaluate(**how):\n"
        "    print('Running loglikelihood requests: 100%')\n"
        "    if 'broken' in how['tasks']: raise KeyError('broken')\n"
        "    print(json.dumps(how), file=sys.stderr)\n"
        "    return {'results': {t: {'alias': t, 'acc,none': 0.5, 'acc_stderr,none': 0.1, 'acc_norm,none': 0.75}\n"
        "                        for t in how['tasks']}, 'n-samples': {t: {'original': 9, 'effective': 8} for t in how['tasks']}}\n"
    )  # fmt: skip
    env = {"PYTHONPATH": str(tmp_path)}
    about = {"a": {"group": "arc_easy"}, "b": {"group": "b"}}
    good = {"id": 1, "model": "/somewhere/1", "tasks": ["a", "b"], "about": about}
    broken = {**good, "id": 2, "about": {**about, "a": {"group": "broken"}}}
    replies, heard = ask("score_lm_eval.py", good, broken, options=["--limit", "5"], env=env)
    assert replies == [{"id": 1, "scores": {"a": {"value": 0.75, "total": 8}, "b": {"value": 0.75, "total": 8}}},
                       {"id": 2, "error": "KeyError: 'broken'"}]  # fmt: skip
    how = json.loads(next(line for line in heard.splitlines() if line.startswith("{")))
    assert how["model"] == "hf" and how["model_args"]["pretrained"] == "/somewhere/1" and how["limit"] == 5
    assert how["tasks"] == ["arc_easy", "b"]
    replies, _ = ask("score_lm_eval.py", good, options=["--metric", "acc"], env=env)
    assert replies[0]["scores"]["a"]["value"] == 0.5
    replies, _ = ask("score_lm_eval.py", {**good, "holdout": 0.5, "held": False}, env=env)
    assert "fitness.holdout" in replies[0]["error"]


@pytest.mark.parametrize("script", ["score_transformers.py", "score_lm_eval.py"])
def test_examples_explain_themselves(script):
    """Without the packages that they score with."""
    done = tools.subprocess.run([sys.executable, "-S", str(EXAMPLES / script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "command evaluator" in done.stdout
