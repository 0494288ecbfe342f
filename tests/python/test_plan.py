"""Planning, checking and what the user sees: options, tables, the JSON log."""

import json
import re
import shlex
import struct
import time

import numpy as np
import pytest
import tools

# ---- plans from headers alone ------------------------------------------------------------------------------------------


def shapes_8b(hidden=4096, layers=32, kv=1024, inner=14336, vocabulary=128256):
    """A Llama of 8 billion parameters."""
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "mlp.down_proj.weight", (hidden, inner)
        yield p + "mlp.gate_proj.weight", (inner, hidden)
        yield p + "mlp.up_proj.weight", (inner, hidden)
        yield p + "post_attention_layernorm.weight", (hidden,)
        for name, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv), ("o_proj", hidden)):
            yield p + f"self_attn.{name}.weight", (rows, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def write_sparse(folder, shapes, shard_bytes=5 * 10**9):
    """Headers and holes: a model whose weights take no room."""
    folder.mkdir()
    shards, at = [{}], 0
    for name, shape in shapes:
        size = 2 * int(np.prod(shape))
        if at + size > shard_bytes and shards[-1]:
            shards.append({})
            at = 0
        shards[-1][name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    where = {}
    for i, header in enumerate(shards):
        file = folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        text = json.dumps(header).encode()
        with open(file, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            f.truncate(8 + len(text) + max(t["data_offsets"][1] for t in header.values()))
        where |= dict.fromkeys(header, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 32}))


@pytest.fixture(scope="module")
def eight_billion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("8b")
    for model in ("base", "x", "y", "z"):
        write_sparse(folder / model, shapes_8b())
    config = {"merge_method": "ties", "base_model": "base", "models": [{"model": m} for m in "xyz"],
              "parameters": {"weight": 0.5, "density": 0.3}, "dtype": "bfloat16",
              "resources": {"memory_per_rank": "1GiB"}}  # fmt: skip
    return tools.write_config(folder / "c.yaml", config)


def read_bytes(command):
    """Run a command; its result, and the bytes it read: a shell's count takes in those of children that ended."""
    result = tools.run("sh", "-c", f"{shlex.join(map(str, command))}; code=$?; echo IO; cat /proc/$$/io; exit $code")
    result.out, io = result.out.split("IO\n")
    return result, int(re.search(r"rchar: (\d+)", io).group(1))


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_plan_for_64_ranks_reads_headers_only(scope, eight_billion):
    began = time.monotonic()
    words = [
        tools.MERGE,
        eight_billion,
        "--plan",
        "--ranks",
        64,
        "--ranks-per-node",
        16,
        "--set",
        f"parameters.scope={scope}",
    ]
    result, read = read_bytes(words)
    seconds = time.monotonic() - began
    print(f"{seconds:.2f} s, {read} bytes read")
    assert result.code == 0, result
    assert seconds < 10 and read < 16 << 20
    rows = re.findall(
        r"^ *(\d+) +(\d+) +(\d+) +([\d.]+ \w+) +([\d.]+ \w+) +([\d.]+ \w+) +([\d.]+) s$", result.out, re.M
    )
    assert [int(row[0]) for row in rows] == list(range(64)), result
    total = sum(int(np.prod(shape)) for _, shape in shapes_8b())
    assert sum(int(row[2]) for row in rows) == total
    elements = [int(row[2]) for row in rows]
    assert max(elements) < 1.1 * total / 64, "the shares differ"
    assert "models: 3 and the base; tensors: 291 merged" in result.out and "ranks: 64," in result.out


def size(text):
    number, unit = text.split()
    return float(number) * {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]


@pytest.mark.parametrize("memory", ["256MiB", "1GiB", "4GiB"])
def test_planned_memory_keeps_the_limit(memory, eight_billion):
    for ranks in (1, 7, 64):
        result = tools.run(
            tools.MERGE, eight_billion, "--plan", "--ranks", ranks, "--set", f"resources.memory_per_rank={memory}"
        )
        assert result.code == 0, result
        most, limit = re.search(r"memory: at most ([\d.]+ \w+) a rank, of ([\d.]+ \w+)", result.out).groups()
        assert size(most) <= size(limit) == size(f"{memory[:-3]} {memory[-3:]}"), result


def test_plan_with_more_ranks_than_tensors(tmp_path):
    for model in ("base", "x"):
        tools.write_folder(
            tmp_path / model, {"w": ("F32", np.ones(5, np.float32)), "v": ("F32", np.ones(3, np.float32))}
        )
    config = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "x"}],
        "parameters": {"weight": 1},
    }
    result = tools.merge(config, tmp_path / "out.h5", "--plan", "--ranks", 1000)
    assert "… and 936 more ranks" in result.out and not (tmp_path / "out.h5").exists(), result


def test_plan_of_the_ranks_that_run(tmp_path):
    config = tools.recipe("bytes-llama", "linear", None, {"weight": 1})
    result = tools.merge(config, tmp_path / "out.h5", "--plan", ranks=3)
    assert result.out.count("ranks: 3,") == 1 and not (tmp_path / "out.h5").exists(), (
        result
    )


# ---- checks, changes, quiet --------------------------------------------------------------------------------------------


def test_check_writes_nothing(tmp_path):
    config = tools.recipe("digits-vit", "ties", None, {"weight": 1})
    for ranks in (0, 2):
        result = tools.merge(config, tmp_path / "out.h5", "--check", ranks=ranks)
        assert result.out.count("are fine") == 1 and sorted(f.name for f in tmp_path.iterdir()) == ["out.h5.yaml"], (
            result
        )


def test_check_needs_no_output(tmp_path):
    path = tools.write_config(tmp_path / "c.yaml", tools.recipe("digits-vit", "linear", None, {"weight": 1}))
    result = tools.run(tools.MERGE, "--check", path)
    assert result.code == 0, result


@pytest.mark.parametrize("path, value, change", [
    ("models.1.parameters.weight", "0.25", lambda c: c["models"][1]["parameters"].update(weight=0.25)),
    ("models.french.parameters.weight", "-1", lambda c: c["models"][2]["parameters"].update(weight=-1)),
    ("parameters.lambda", "2", lambda c: c["parameters"].update({"lambda": 2})),
    ("parameters.density", "[0.1, 0.9]", lambda c: c["parameters"].update(density=[0.1, 0.9])),
    ("merge_method", "dare_linear", lambda c: c.update(merge_method="dare_linear")),
    ("seed", "5", lambda c: c.update(seed=5)),
    ("out_dtype", "bfloat16", lambda c: c.update(out_dtype="bfloat16")),
])  # fmt: skip
def test_set_is_the_same_as_writing_it(path, value, change, tmp_path):
    config = tools.recipe(
        "bytes-llama", "dare_ties", {"density": 0.5}, [{"weight": 0.3} for _ in tools.TASKS["bytes-llama"]]
    )
    tools.merge(config, tmp_path / "plain.h5")
    tools.merge(config, tmp_path / "set.h5", "--set", f"{path}={value}")
    change(config)
    tools.merge(config, tmp_path / "written.h5")
    changed = tools.read_model(tmp_path / "set.h5")
    assert tools.same_tensors(changed, tools.read_model(tmp_path / "written.h5"))
    assert not tools.same_tensors(changed, tools.read_model(tmp_path / "plain.h5"))


def test_set_may_be_repeated_and_the_last_counts(tmp_path):
    config = tools.recipe("bytes-llama", "linear", None, {"weight": 1})
    tools.merge(
        config, tmp_path / "a.h5", "--set", "models.0.parameters.weight=9", "--set", "models.0.parameters.weight=3"
    )
    config["models"][0]["parameters"] = {"weight": 3}
    tools.merge(config, tmp_path / "b.h5")
    assert tools.same_tensors(tools.read_model(tmp_path / "a.h5"), tools.read_model(tmp_path / "b.h5"))


def test_outputs_on_the_command_line_come_first(tmp_path):
    config = tools.recipe("bytes-llama", "linear", None, {"weight": 1}, output={"path": str(tmp_path / "config.h5")})
    path = tools.write_config(tmp_path / "c.yaml", config)
    for words, name in (([tmp_path / "a.h5"], "a.h5"), (["-o", tmp_path / "b.h5"], "b.h5"),
                        ([f"--output={tmp_path}/c.h5"], "c.h5"), ([], "config.h5")):  # fmt: skip
        assert tools.run(tools.MERGE, path, *words).code == 0
        assert (tmp_path / name).exists()


def test_relative_output_lies_in_the_current_folder(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "here").mkdir()
    path = tools.write_config(tmp_path / "configs/c.yaml", tools.recipe("bytes-llama", "linear", None, {"weight": 1}))
    assert tools.run(tools.MERGE, path, "out.h5", cwd=tmp_path / "here").code == 0
    assert (tmp_path / "here/out.h5").exists()


def test_quiet_says_nothing(tmp_path):
    config = tools.recipe("digits-vit", "ties", None, {"weight": 1, "int8_mask": True})
    result = tools.merge(config, tmp_path / "out.h5", "--quiet", ranks=2)
    assert result.out == result.err == ""
    result = tools.merge(config, tmp_path / "out.h5", "--quiet", code=2)
    assert result.out == "" and result.err.count("\n") == 1 and "exists already" in result.err


def test_summary_and_no_escapes_in_a_pipe(tmp_path):
    result = tools.merge(
        tools.recipe("bytes-llama", "ties", {"density": 0.25}, {"weight": 1}), tmp_path / "out.h5", ranks=2
    )
    assert "\033" not in result.out + result.err and "\r" not in result.out + result.err
    norms = {}
    base = tools.read_model(tools.MODELS / "bytes-llama/base")
    for task in tools.TASKS["bytes-llama"]:
        tuned = tools.read_model(tools.MODELS / "bytes-llama" / task)
        squares = sum(((tools.values(tuned[n]) - tools.values(base[n])).astype(np.float64) ** 2).sum() for n in base)
        norms[task] = float(np.sqrt(squares))
    for task, norm in norms.items():
        row = re.search(rf"^{task} +([\d.]+) +([\d.]+) %$", result.out, re.M)
        assert row and float(row.group(1)) == pytest.approx(norm, rel=1e-5), result
        assert float(row.group(2)) == pytest.approx(25, abs=0.02)


# ---- the log -----------------------------------------------------------------------------------------------------------


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_is_json_lines(tmp_path):
    log = tmp_path / "log.jsonl"
    config = tools.recipe("bytes-llama", "ties", {"density": 0.5, "int8_mask": True}, {"weight": 1})
    tools.merge(config, tmp_path / "out.h5", "--log", log, ranks=2)
    found = events(log)
    times = [event["time"] for event in found]
    assert times == sorted(times) and all(abs(t - time.time()) < 600 for t in times)
    names = [event["event"] for event in found]
    assert {"note", "phase", "phase_end", "done"} <= set(names) and names[-1] == "done"
    done = found[-1]
    assert done["method"] == "ties" and done["ranks"] == 2 and done["bytes"] == (tmp_path / "out.h5").stat().st_size
    assert [model["name"] for model in done["models"]] == tools.TASKS["bytes-llama"]
    end = next(event for event in found if event["event"] == "phase_end")
    begin = next(event for event in found if event["event"] == "phase")
    assert end["done"] == begin["total"]
    tools.merge(config, tmp_path / "out.h5", "--log", log, code=2)
    more = events(log)
    assert more[: len(found)] == found and more[-1]["event"] == "error" and more[-1]["exit_code"] == 2
    assert "exists already" in more[-1]["text"]


def test_plan_in_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    tools.merge(
        tools.recipe("bytes-llama", "linear", None, {"weight": 1}),
        tmp_path / "o.h5",
        "--plan",
        "--ranks",
        5,
        "--log",
        log,
    )
    plan = [event for event in events(log) if event["event"] == "plan"]
    assert len(plan) == 1 and plan[0]["ranks"] == 5 and plan[0]["read"] > plan[0]["write"] > 0


def test_log_that_cannot_be_opened(tmp_path):
    config = tools.recipe("bytes-llama", "linear", None, {"weight": 1})
    result = tools.merge(config, tmp_path / "out.h5", "--log", tmp_path / "no/log", code=1)
    assert "the log cannot be opened" in result.err and not (tmp_path / "out.h5").exists()


# ---- version and help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [tools.MERGE, tools.INSPECT, tools.CONVERT])
@pytest.mark.parametrize("ranks", [0, 2])
def test_version_and_help(program, ranks):
    version = tools.run(program, "--version", ranks=ranks)
    assert (
        version.code == 0
        and re.match(rf"{program.name} \d+\.\d+", version.out)
        and version.out.count(program.name) == 1
    )
    for option in ("--help", "-h"):
        result = tools.run(program, option, ranks=ranks)
        assert result.code == 0 and result.out.count("Usage:") == 1 and result.err == "", result
        assert all(len(line) <= 80 for line in result.out.splitlines())


def test_help_names_every_option():
    text = tools.run(tools.MERGE, "--help").out
    for option in ("--check", "--plan", "--ranks", "--ranks-per-node", "--set", "--output", "--force", "--log", "--quiet",
                   "--verbose", "--version", "--help"):  # fmt: skip
        assert option in text


# ---- nps-inspect -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [0, 3])
def test_inspect_json(ranks):
    result = tools.run(tools.INSPECT, tools.MODELS / "bytes-llama/french", "--json", ranks=ranks)
    assert result.code == 0, result
    found = json.loads(result.out)["tensors"]
    expected = tools.read_model(tools.MODELS / "bytes-llama/french")
    assert [t["name"] for t in found] and {t["name"] for t in found} == set(expected)
    for t in found:
        dtype, array = expected[t["name"]]
        assert (t["dtype"], t["shape"], t["bytes"]) == (dtype, list(array.shape), array.nbytes)
        assert t["norm"] == pytest.approx(np.linalg.norm(tools.values((dtype, array)).astype(np.float64)), rel=1e-12)


def test_inspect_a_merged_file(tmp_path):
    tools.merge(tools.recipe("bytes-llama", "linear", None, {"weight": 1}), tmp_path / "out.h5")
    result = tools.run(tools.INSPECT, tmp_path / "out.h5", "--against", tools.MODELS / "bytes-llama/base")
    assert result.code == 0 and re.search(r"^method +linear$", result.out, re.M) and "lm_head.weight" in result.out, (
        result
    )
