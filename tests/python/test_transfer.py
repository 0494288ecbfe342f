"""nps.application: transfer beside general tasks: the H-score as objective and in the table, and the path along λ with its knee.
Scores are compared with nps-eval's of the models that a merge with the same numbers writes."""

import json
import statistics
import sys

import h5py
import numpy as np
import pytest
import tools

sys.path.append(str(tools.ROOT / "tests/bench"))

FAMILY = tools.MODELS / "digits-vit"
MODELS, GENERAL = ["noise", "parity"], ["plain", "blur"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("transfer") / "samples.h5"
    with h5py.File(FAMILY / "calibration.h5") as source, h5py.File(path, "w") as target:
        for task in MODELS + GENERAL:
            for name in ("inputs", "labels"):
                target[f"{task}/{name}"] = source[task][name][:40]
    return path


def config_of(samples, names, nps=None, parameters=None, search=None):
    """Without a search: no tasks either."""
    config = tools.recipe("digits-vit", "nps", parameters, names=names)
    config["nps"] = {"application": "transfer", "subspaces": 4, "density": 0.3, **(nps or {})}
    if search:
        general = [{"name": name, "data": str(samples), "head": str(FAMILY / name)} for name in GENERAL]
        tasks = [{"name": name, "data": str(samples)} for name in names]
        config["search"] = {"generations": 3, "population": 6, **search}
        config["fitness"] = {"objective": "h_score", "tasks": general + tasks}
    return config


@pytest.fixture(scope="module")
def outcome(samples, tmp_path_factory):
    """The folder of the outputs on 2 ranks, what was printed, and the log."""
    folder = tmp_path_factory.mktemp("outcome")
    config = config_of(samples, MODELS, search={"final": "best"})
    config["fitness"]["holdout"] = 0
    result = tools.merge(config, folder / "{name}.h5", "--log", folder / "log", ranks=2)
    return folder, result.out, [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def harmonic(correct, total, own):
    """Of [tasks] counts, the first `own` the model's."""
    accuracy = np.asarray(correct) / np.asarray(total)
    return statistics.harmonic_mean([accuracy[:own].mean(), accuracy[own:].mean()])


def evaluated(model, samples, own):
    """{task: scores} of a model on its own task and on the general ones."""
    heads = [word for task in (own, *GENERAL) for word in ("--group", task, "--head", f"{task}={FAMILY / task}")]
    return tools.evaluate(model, "--data", samples, *heads)["tasks"]


def path_of(folder, model):
    with h5py.File(folder / f"{model}.h5") as file:
        group = file[f"transfer/{model}"]
        found = {name: group[name][:] for name in group}
        found.update({f"@{name}": value for name, value in group.attrs.items()})
        return found


def knee_of(own, general):
    """Farthest above the straight line from the start to where most is learnt; None where there is none."""
    end = int(np.argmax(own))
    if end == 0:
        return None
    if general[end] >= general[0]:
        return end
    line = general[0] + (general[end] - general[0]) * (own[: end + 1] - own[0]) / (own[end] - own[0])
    above = general[: end + 1] - line
    return int(np.argmax(above)) if above.max() > 1e-9 else None


def test_candidates_are_ranked_by_the_h_score(outcome):
    folder, _, _ = outcome
    for model in MODELS:
        with h5py.File(folder / f"{model}.h5") as file:
            group = file[f"search/prune/{model}"]
            tasks = [t.decode() if isinstance(t, bytes) else t for t in group.attrs["tasks"]]
            assert tasks == [*GENERAL, model]
            correct, total = group["correct"][:], group["total"][:]
            h = [harmonic(c[::-1], t[::-1], 1) for c, t in zip(correct, total)]
            assert h[int(group.attrs["best"])] == pytest.approx(max(h), abs=1e-12)
            assert len(set(np.round(h, 9))) > 3, "candidates that are all alike show nothing"


def test_the_path_has_the_scores_of_expanded_models(outcome, samples, tmp_path):
    folder, _, _ = outcome
    for model, points in (("noise", (0, 4, 15)), ("parity", (10,))):
        path = path_of(folder, model)
        np.testing.assert_allclose(path["lambda"], np.arange(16) / 10, rtol=1e-15)
        with h5py.File(folder / f"{model}.h5") as file:
            weights = file["subspaces/weight"][0].tolist()
        for p in points:
            out = tmp_path / "again.h5"
            nps = {"weights": weights}
            tools.merge(config_of(samples, [model], nps, {"lambda": float(path["lambda"][p])}), out, "--force")
            scores = list(evaluated(out, samples, model).values())
            assert path["correct"][p].tolist() == [s["correct"] for s in scores], f"{model}, λ = {path['lambda'][p]}"
            assert path["total"][p].tolist() == [s["total"] for s in scores]
            np.testing.assert_allclose(path["nll_sum"][p] / path["total"][p], [s["nll"] for s in scores], rtol=1e-5)


def test_the_path_is_judged(outcome):
    folder, out, events = outcome
    logged = {e["model"]: e for e in events if e["event"] == "path"}
    assert list(logged) == MODELS
    for model in MODELS:
        path = path_of(folder, model)
        h = [harmonic(c, t, 1) for c, t in zip(path["correct"], path["total"])]
        np.testing.assert_allclose(path["h_score"], h, rtol=1e-14)
        assert path["@best"] == np.argmax(h)
        knee = knee_of(path["own"], path["general"])
        assert path["@knee"] == (-1 if knee is None else knee)
        assert logged[model]["knee"] == (None if knee is None else path["lambda"][knee])
        assert logged[model]["h_score"] == pytest.approx(h, abs=1e-15)
        assert f"of {model}:" in out
    assert out.count("best H-score") == 2


def test_the_table_compares_with_the_fine_tuned_model(outcome, samples):
    folder, out, events = outcome
    scores = next(e for e in events if e["event"] == "scores")
    for model in MODELS:
        found = next(h for h in scores["h_scores"] if h["model"] == model)
        for key, compared in (("base", FAMILY / "base"), ("fine_tuned", FAMILY / model), ("merged", folder / f"{model}.h5")):
            all_ = evaluated(compared, samples, model).values()
            want = harmonic([s["correct"] for s in all_], [s["total"] for s in all_], 1)
            assert found[key] == pytest.approx(want, abs=1e-12), (model, key)
        row = next(line for line in out.splitlines() if line.startswith(f"H-score of {model}"))
        assert f"{found['merged']:.4f}".lstrip("0") in row


def test_ranks_give_the_same_bytes(outcome, samples, tmp_path):
    folder, _, _ = outcome
    config = config_of(samples, MODELS, search={"final": "best"})
    config["fitness"]["holdout"] = 0
    tools.merge(config, tmp_path / "{name}.h5", "--set", "search.ranks_per_model=2", ranks=3)
    for model in MODELS:
        assert tools.search_content(tmp_path / f"{model}.h5") == tools.search_content(folder / f"{model}.h5")
        for name, value in path_of(folder, model).items():
            assert np.array_equal(value, path_of(tmp_path, model)[name]), name


def test_without_general_tasks_there_is_no_path(samples, tmp_path):
    config = config_of(samples, ["noise"], search={"algorithm": "none"})
    config["fitness"] = {"tasks": config["fitness"]["tasks"][-1:]}
    result = tools.merge(config, tmp_path / "out.h5")
    assert "H-score" not in result.out
    with h5py.File(tmp_path / "out.h5") as file:
        assert "transfer" not in file


def test_of_texts(tmp_path):
    """bytes-llama: no classifiers, accuracies of next bytes, ranked by nll among equals."""
    family, data = tools.MODELS / "bytes-llama", tmp_path / "samples.h5"
    with h5py.File(family / "calibration.h5") as source, h5py.File(data, "w") as target:
        for task in ("c", "legal"):
            target[f"{task}/input_ids"] = source[f"{task}/input_ids"][:6]
    config = tools.recipe("bytes-llama", "nps", names=["legal"])
    config["nps"] = {"application": "transfer", "density": 0.2}
    config["search"] = {"generations": 2, "population": 4}
    config["fitness"] = {"objective": "h_score", "tasks": [{"name": task, "data": str(data)} for task in ("c", "legal")]}
    tools.merge(config, tmp_path / "legal.h5", ranks=2)
    path = path_of(tmp_path, "legal")
    scores = tools.evaluate(tmp_path / "legal.h5", "--data", data)["tasks"]
    assert path["correct"][10].tolist() == [scores[t]["correct"] for t in ("legal", "c")], "λ = 1 is the output"
    base = tools.evaluate(family / "base", "--data", data)["tasks"]
    assert path["correct"][0].tolist() == [base[t]["correct"] for t in ("legal", "c")], "λ = 0 is the base"
    h = [harmonic(c, t, 1) for c, t in zip(path["correct"], path["total"])]
    np.testing.assert_allclose(path["h_score"], h, rtol=1e-14)
    assert h[10] != h[0]


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", ["digits-vit/parity", "digits-vit/invert", "bytes-llama/legal", "bytes-llama/french"])
def test_more_of_both_than_fine_tuning(task, tmp_path):
    """On samples that no search has seen the H-score is better than the base's and the fully fine-tuned model's."""
    import transfer_study as study

    family, name = task.split("/")
    _, _, h = study.transferred(family, name, 0.1, 1, tmp_path)
    for model in ("base", name):
        assert h > study.scores(family, tools.MODELS / family / model, name)[2]
