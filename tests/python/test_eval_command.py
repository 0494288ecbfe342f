"""nps-eval --config: the command of a config scores one model, as it would in a search, and what goes wrong is said."""

import json
import os
import signal

import pytest
import tools
from commands import FOLDERS, by_command, one_generation, processes_of

FAMILY = tools.SMALL_SEARCH


def ask(model, config, folder, *options, ranks=0, code=0):
    """nps-eval --config, with its JSON in .json."""
    path = tools.write_config(folder / "config.yaml", config)
    result = tools.run(tools.EVAL, model, "--config", path, *options, ranks=ranks)
    assert result.code == code, result
    return result


def scores(model, config, folder, *options, ranks=0):
    return json.loads(ask(model, config, folder, "--json", *options, ranks=ranks).out)


# ---- the scores --------------------------------------------------------------------------------------------------------


def native(model, few):
    heads = [word for task in tools.SMALL_SEARCH_TASKS for word in ("--head", f"{task}={FAMILY / task}")]
    return tools.evaluate(model, "--data", few, *heads)


def adapter(folder):
    """A model whose tensors are computed when they are read."""
    done = tools.run(tools.CONVERT, FAMILY / "blur", folder / "lora", "--base", FAMILY / "base", "--lora-rank", "4")
    assert done.code == 0, done
    return f"{FAMILY / 'base'}+{folder / 'lora'}"


def merged(folder):
    """bfloat16, with a head, in an HDF5 file."""
    config = tools.recipe("digits-vit", "task_arithmetic", names=["plain"], model_parameters={"weight": 1.0})
    tools.merge({**config, "out_dtype": "bfloat16"}, folder / "merged.h5")
    return folder / "merged.h5"


@pytest.mark.parametrize("kind, ranks, holdout", [("folder", 0, 0), ("hdf5", 3, 0.25), ("adapter", 2, 0)])
def test_scores_are_the_native_ones(kind, ranks, holdout, few, shared, tmp_path):
    """The model's own head is not handed over: each task has its own. Held-out samples are asked for, and count."""
    model = {"folder": lambda _: FAMILY / "plain", "hdf5": merged, "adapter": adapter}[kind](tmp_path)
    found = scores(model, by_command(one_generation(few), shared, fitness={"holdout": holdout}), tmp_path, ranks=ranks)
    want = native(model, few)
    assert list(found["tasks"]) == tools.SMALL_SEARCH_TASKS and found["tasks"].keys() == want["tasks"].keys()
    for task, score in found["tasks"].items():
        assert list(score) == ["correct", "total", "accuracy", "nll"]
        assert (score["correct"], score["total"]) == (want["tasks"][task]["correct"], 16), task
        assert score["nll"] == pytest.approx(want["tasks"][task]["nll"], rel=1e-5, abs=1e-4)
    for key in ("accuracy", "nll"):
        assert found["average"][key] == pytest.approx(want["average"][key], rel=1e-5, abs=1e-4)


def test_what_a_search_hands_over(few, shared, tmp_path):
    """Made-up scores depend on every byte of model.safetensors: a search and nps-eval hand over the same, and tell the same."""
    told = {name: tmp_path / name for name in ("search", "eval")}
    log, out = tmp_path / "log", tmp_path / "out.h5"
    tools.merge(by_command(one_generation(few), shared, cheap=True, tell=str(told["search"])), out, "--log", log)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    rows = {row["task"]: row["calibration"] for row in next(e for e in events if e["event"] == "scores")["tasks"]}
    config = by_command(one_generation(few), shared, cheap=True, tell=str(told["eval"]))
    for model, column, tasks in ((FAMILY / "base", "base", rows), (FAMILY / "plain", "fine_tuned", ["plain"]), (out, "merged", rows)):
        found = scores(model, config, tmp_path)["tasks"]
        for task in tasks:
            assert found[task]["nll"] == rows[task][column]["nll"] > 0, (column, task)
    first, ours = (json.loads(path.read_text().splitlines()[0]) for path in told.values())
    for key in ("files", "folder"):
        assert ours[key] == first[key]
    for key in ("id", "tasks", "about"):
        assert ours["request"][key] == first["request"][key]
    assert ours["group"] == ours["pid"] and ours["environment"]["NPS_GROUP"] == "0"
    assert len({json.loads(line)["pid"] for line in told["eval"].read_text().splitlines()}) == 3


def test_figures_are_those_that_are_known(few, shared, tmp_path):
    """Values as they are given, whichever is better; the nll only where every task has one."""
    for direction in ("min", "max"):
        more = {"metric": "value", "direction": direction}
        config = by_command(one_generation(few), shared, cheap=True, always="value", fitness=more)
        found = scores(FAMILY / "plain", config, tmp_path)["tasks"]["plain"]
        assert list(found) == ["total", "value"] and found["total"] == 2 and found["value"] > 0
    table = ask(FAMILY / "plain", config, tmp_path).out.splitlines()
    assert "has answered in " in table[0] and "fitness.timeout: 60 s" in table[0]
    assert table[1].split() == ["task", "samples", "value"] and table[-1].split()[0] == "average"
    config = by_command(one_generation(few), shared, cheap=True, always="no nll", fitness={"metric": "accuracy"})
    assert list(scores(FAMILY / "plain", config, tmp_path)["tasks"]["plain"]) == ["correct", "total", "accuracy"]


# ---- what goes wrong ---------------------------------------------------------------------------------------------------

FAULTS = {
    "die": "python3 ended with exit code 1; its last words on stderr:",
    "hang": "python3 gave no answer within 2 s",
    "nonsense": "answered with what is no JSON (",
    "error": "the command says: I do not like it",
    "too many": 'expected "correct", a whole number from 0 to its "total", 16; it is {"id":1,"scores":{"plain":{"correct":1000000,',
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault, few, shared, tmp_path):
    """One error, of every rank together; what the command says on stderr is shown as it comes."""
    more = {"metric": "accuracy"}
    config = by_command(one_generation(few), shared, timeout=2 if fault == "hang" else 60, cheap=True, always=fault, fitness=more)
    config["fitness"]["command"][0] = "python3"
    result = ask(FAMILY / "plain", config, tmp_path, ranks=2 if fault in ("die", "hang") else 0, code=1)
    assert result.err.count("error: ") == 1 and not result.out, result
    assert f"error: {FAMILY / 'plain'} cannot be scored: " in result.err and FAULTS[fault] in result.err, result
    if fault != "hang":  # which may not have started by then
        assert f"about to be bad: {fault}\n" in result.err.split("nps-eval: error")[0], result


def test_more_than_an_answer_is_noted(few, shared, tmp_path):
    config = by_command(one_generation(few), shared, cheap=True, always="two answers")
    result = ask(FAMILY / "plain", config, tmp_path)
    assert result.err.count("printed more on stdout than its answer") == 1, result


def test_what_cannot_be_asked(few, shared, tmp_path):
    """Found before a command is started."""
    config = by_command(one_generation(few), shared, cheap=True)
    llama = tools.MODELS / "bytes-llama/base"
    plain = FAMILY / "plain"
    cases = [
        (plain, tools.small_search(few), [], 2, "fitness.evaluator: expected command; the native evaluators score by --data FILE"),
        (plain, config, ["--set", "fitness.command=[no-such-program]"], 2, "there is no such program in PATH"),
        (plain, config, ["--set", "fitness.timeout=soon"], 2, "fitness.timeout: expected a number"),
        (plain, config, ["--set", "fitness.timeout"], 2, "option --set: expected KEY=VALUE"),
        (plain, config, ["--data", few, "--batch", "7"], 2, "option --batch: does not go with --config"),
        (llama, config, [], 3, "lacks tensor "),
        (tmp_path / "none", config, [], 3, "none"),
    ]  # fmt: skip
    for model, recipe, options, code, message in cases:
        result = ask(model, recipe, tmp_path, *options, code=code)
        assert message in result.err and not result.out, (message, result)
    result = tools.run(tools.EVAL, plain, "--data", few, "--set", "fitness.timeout=1")
    assert result.code == 2 and "option --set goes with --config only" in result.err, result


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_stays_when_it_is_killed(how, few, shared, tmp_path):
    tell = tmp_path / "tell"
    config = by_command(one_generation(few), shared, timeout=1000, cheap=True, tell=str(tell), always="hang with children")
    path = tools.write_config(tmp_path / "config.yaml", config)
    process = tools.start(tools.EVAL, FAMILY / "plain", "--config", path)
    try:
        assert tools.wait_for(lambda: len(processes_of(tell)) >= 4, limit=60), "a supervisor, the command, its children"
        assert len(list(shared.glob(FOLDERS))) == 1
        os.kill(process.pid, how)
        process.wait(60)
        assert tools.wait_for(lambda: not processes_of(tell), limit=30), processes_of(tell)
    finally:
        process.kill()
        tools.finish(process)
