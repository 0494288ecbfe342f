"""Compressed archives: what is written against a naive oracle and the decoder of tools/nps_merge.py, what is read back."""

import json
import os
import shutil
import sys
import zlib

import h5py
import numpy as np
import pytest

from oracle import nps_models
from tools import CONVERT, EVAL, INSPECT, MODELS, ROOT, merge, narrow, read_model, recipe, run, same_tensors, values, write_folder

sys.path.insert(0, str(ROOT / "tools"))
import nps_merge  # noqa: E402

WEIGHTS = [0.5, 1.0, -1.0, 2.0]


def compression(family, names, density=0.1, bits=8, scope="model", embed=False, **more):
    nps = {"application": "compression", "density": density, "subspaces": 4, "scope": scope, "weights": WEIGHTS}
    config = recipe(family, "nps", names=names, nps=nps, archive={"value_bits": bits, "embed_base": embed}, **more)
    del config["dtype"]
    return config


def quantised(x, bits):
    """1,024 entries share a scale."""
    flat, levels = x.reshape(-1), 2 ** (bits - 1) - 1
    out = np.zeros_like(flat)
    for at in range(0, flat.size, 1024):
        part = flat[at : at + 1024]
        scale = np.float32(np.float64(np.abs(part).max()) / levels)
        if scale > 0:
            codes = np.clip(np.rint(part.astype(np.float64) / np.float64(scale)), -levels, levels)
            out[at : at + 1024] = scale * codes.astype(np.float32)
    return out.reshape(x.shape)


def expected(family, names, density, bits, scope):
    base = read_model(MODELS / family / "base")
    theta = [read_model(MODELS / family / name) for name in names]
    numbers = {name: values(t) for name, t in base.items()}
    q, kept = nps_models(numbers, [{n: values(m[n]) for n in base} for m in theta], [WEIGHTS] * len(names),
                         [density] * len(names), scope)  # fmt: skip
    models = []
    for i, model in enumerate(theta):
        out = {name: t for name, t in model.items() if name not in base}
        for name, (dtype, _) in base.items():
            update = quantised(q[name][i], bits).astype(np.float64)
            out[name] = (dtype, narrow(numbers[name].astype(np.float64) + update, dtype))
        models.append(out)
    return models, kept


def raw(path, **more):
    with nps_merge.open(path, framework="numpy", **more) as model:
        return {name: model.raw(name) for name in model}


CASES = [
    ("digits-vit", ["plain", "parity"], 0.1, 8, "model"),
    ("digits-vit", ["blur"], 0.02, 4, "tensor"),
    ("bytes-llama", ["german"], 0.4, 16, "model"),
]


@pytest.mark.parametrize("family, names, density, bits, scope", CASES)
@pytest.mark.parametrize("ranks", [0, 3])
def test_an_archive_expands_to_what_the_oracle_gives(tmp_path, family, names, density, bits, scope, ranks):
    out = tmp_path / "a.h5"
    merge(compression(family, names, density, bits, scope), out, ranks=ranks)
    assert nps_merge.models(out) == sorted(names)
    models, _ = expected(family, names, density, bits, scope)
    for name, model in zip(names, models):
        assert same_tensors(raw(f"{out}#{name}"), model)
    assert same_tensors(raw(out), read_model(MODELS / family / "base"))


def test_an_archive_is_the_same_bytes_on_any_number_of_ranks(tmp_path):
    config = compression("digits-vit", ["plain", "rot90"], scope="tensor")
    for ranks in (0, 2, 5):
        merge(config, tmp_path / f"{ranks}.h5", ranks=ranks)
    assert len({(tmp_path / f"{ranks}.h5").read_bytes() for ranks in (0, 2, 5)}) == 1


def test_tensors_of_many_blocks_and_none_kept(tmp_path):
    rng = np.random.default_rng(1)
    shapes = {"big": (3, 70001), "one": (1,), "empty": (0, 4), "row": (1024,), "same": (2000,)}
    base = {n: ("F32", rng.standard_normal(s).astype(np.float32)) for n, s in shapes.items()}
    base["steps"] = ("I64", np.arange(5))
    tuned = {n: (t, x + (rng.standard_normal(x.shape) * 0.01).astype(np.float32) if t == "F32" and n != "same" else x)
             for n, (t, x) in base.items()}  # fmt: skip
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned)
    for density in (0.0, 0.003, 0.5, 1.0):
        config = {"merge_method": "nps", "base_model": "base", "models": [{"model": "tuned"}],
                  "nps": {"application": "compression", "density": density, "subspaces": 1}}  # fmt: skip
        merge(config, tmp_path / "a.h5", "--force", ranks=3)
        names = [n for n, (t, _) in base.items() if t == "F32"]
        q, _ = nps_models({n: base[n][1] for n in names}, [{n: tuned[n][1] for n in names}], [[1.0]], [density], "model")
        got = raw(f"{tmp_path}/a.h5#tuned")
        assert got.keys() == base.keys() and np.array_equal(got["steps"][1], base["steps"][1])
        for name in names:
            want = base[name][1] + quantised(q[name][0], 8).astype(np.float64)
            assert np.array_equal(got[name][1], want.astype(np.float32)), name


# ---- reading with the programs -----------------------------------------------------------------------------------------


def expand(path, out, *options, ranks=0, code=0):
    result = run(CONVERT, path, out, "--force", *options, ranks=ranks)
    assert result.code == code, result
    return result


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    out = tmp_path_factory.mktemp("archive") / "a.h5"
    merge(compression("digits-vit", ["plain", "parity"], embed=False), out)
    return out


def test_expanding_gives_what_python_reads(tmp_path, archive):
    for i, (target, ranks) in enumerate([("out", 0), ("out.h5", 3)]):
        expand(archive, tmp_path / target, "--task", "parity", ranks=ranks)
        assert same_tensors(read_model(tmp_path / target), raw(f"{archive}#parity")), i
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["id2label"] == json.loads((MODELS / "digits-vit/parity/config.json").read_text())["id2label"]
    expand(archive, tmp_path / "base", ranks=2)
    assert same_tensors(read_model(tmp_path / "base"), read_model(MODELS / "digits-vit/base"))


def test_expanded_and_compressed_models_have_the_same_scores(tmp_path):
    """What the search reports is what the expanded model scores, on all samples together."""
    data = str(MODELS / "bytes-llama/calibration.h5")
    config = recipe("bytes-llama", "nps", names=["c"], nps={"application": "compression", "density": 0.05, "subspaces": 2},
                    archive={"value_bits": 4}, search={"generations": 1, "population": 2},
                    fitness={"tasks": [{"name": "c", "data": data}]})  # fmt: skip
    del config["dtype"]
    out = tmp_path / "a.h5"
    merge(config, out, "--log", tmp_path / "log", ranks=2)
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    row = next(e for e in events if e["event"] == "scores")["tasks"][0]
    expand(f"{out}#c", tmp_path / "c")
    for model in (f"{out}#c", tmp_path / "c"):
        result = run(EVAL, model, "--data", data, "--group", "c", "--json", ranks=2)
        found = json.loads(result.out)["tasks"]["c"]
        parts = [row[part]["merged"] for part in ("calibration", "held_out")]
        weights = [0.75, 0.25]
        assert abs(found["accuracy"] - sum(w * p["accuracy"] for w, p in zip(weights, parts))) < 1e-12
        assert abs(found["nll"] - sum(w * p["nll"] for w, p in zip(weights, parts))) < 1e-5  # batches differ


def test_merging_from_archives_alone(tmp_path):
    """With an embedded base nothing else is needed; the merge is that of the expanded models."""
    out = tmp_path / "a.h5"
    merge(compression("digits-vit", ["plain", "parity"], embed=True), out, ranks=2)
    for name in ("plain", "parity"):
        expand(f"{out}#{name}", tmp_path / name)
    ties = {"merge_method": "ties", "parameters": {"weight": 0.5, "density": 0.5}}
    for result, base, models in [("1.h5", "a.h5", ["a.h5#plain", "a.h5#parity"]),
                                 ("2.h5", str(MODELS / "digits-vit/base"), ["plain", "parity"])]:  # fmt: skip
        merge({**ties, "base_model": base, "models": [{"model": m} for m in models]}, tmp_path / result, ranks=2)
    assert same_tensors(read_model(tmp_path / "1.h5"), read_model(tmp_path / "2.h5"))


def test_an_archive_tells_what_is_in_it(archive):
    told = json.loads(run(INSPECT, archive, "--json").out)["models"]
    assert [m["name"] for m in told] == ["parity", "plain"]
    assert all(0 < m["kept"] <= 53312 and 0 < m["error"] < 0.01 and 0 < m["bytes"] < 100e3 for m in told)


# ---- what is wrong -----------------------------------------------------------------------------------------------------


def changed_base(tmp_path, change):
    """An archive whose base lies in the same folder and is changed afterwards."""
    base = {"a.weight": ("F32", np.arange(12, dtype=np.float32).reshape(3, 4))}
    tuned = {"a.weight": ("F32", base["a.weight"][1] + np.float32(0.5))}
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "x", tuned)
    config = {"merge_method": "nps", "base_model": "base", "models": [{"model": "x"}],
              "nps": {"application": "compression", "density": 1.0, "subspaces": 1}}  # fmt: skip
    merge(config, tmp_path / "a.h5")
    change(tmp_path / "base/model.safetensors")


BASES = {
    "missing": (lambda path: path.parent.rename(path.parent.with_name("moved")), "is not there"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "base/model.safetensors"),
    "changed": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "another content"),
}


@pytest.mark.parametrize("case", BASES)
@pytest.mark.parametrize("ranks", [0, 2])
def test_another_base_is_refused(tmp_path, case, ranks):
    change, message = BASES[case]
    changed_base(tmp_path, change)
    result = expand(f"{tmp_path}/a.h5#x", tmp_path / "out", ranks=ranks, code=3)
    assert message in result.err and result.err.count("error") == 1, result


def test_a_base_that_moved_with_its_archive_is_found(tmp_path):
    (tmp_path / "one").mkdir()
    changed_base(tmp_path / "one", lambda path: None)
    (tmp_path / "one").rename(tmp_path / "two")
    expand(f"{tmp_path}/two/a.h5#x", tmp_path / "out")
    assert nps_merge.load(f"{tmp_path}/two/a.h5#x", framework="numpy")["a.weight"][0, 0] == 0.5


def test_a_base_that_is_a_model_of_an_archive(tmp_path, archive):
    """It is computed, which the Python module does not do."""
    config = {**compression("digits-vit", ["blur"]), "base_model": f"{archive}#plain"}
    merge(config, tmp_path / "a.h5")
    expand(f"{tmp_path}/a.h5#blur", tmp_path / "out")
    with pytest.raises(ValueError, match="not stored but computed"):
        nps_merge.open(f"{tmp_path}/a.h5#blur")


def test_unknown_models_and_options(tmp_path, archive):
    assert "has no model 'plan', did you mean 'plain'?" in expand(f"{archive}#plan", tmp_path / "o", code=3).err
    assert "has no model 'zzzzzzz', but parity, plain" in expand(archive, tmp_path / "o", "--task", "zzzzzzz", code=3).err
    assert "expected a name that ends in .h5" in merge(compression("digits-vit", ["plain"]), tmp_path / "o", code=2).err
    with pytest.raises(KeyError, match="plane"):
        nps_merge.open(f"{archive}#plane")
    merge(compression("digits-vit", ["plain"]), tmp_path / "m.h5")
    expand(f"{tmp_path}/m.h5#plain", tmp_path / "n.h5")
    assert "is no archive" in expand(f"{tmp_path}/n.h5#plain", tmp_path / "o", code=3).err


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.h5")
    for path in (tmp_path / "a.h5", f"{tmp_path}/a.h5#plain"):
        assert run(INSPECT, path, limit=30).code == 3


def set_row(at, value):
    return lambda m, f: m["blocks"].__setitem__(at, value)


def largest(m):
    """The block that keeps most, and where its units, positions and values begin."""
    rows = m["blocks"][:].astype(np.int64)
    b = int(rows[:, 0].argmax())
    counts = m.file["index/count"][:]
    tensors = -(-counts // 65536)
    unit = sum(int(-(-n // 1024)) for n, t in zip(counts, np.cumsum(tensors)) if t <= b)
    return b, unit, int(rows[:b, 1].sum()), int(rows[:b, 2].sum())


def move_bytes(m, f):
    """One byte more of positions in a block, one less in the next."""
    b = largest(m)[0]
    rows = m["blocks"][:]
    rows[b, 1] += 1
    rows[b + 1, 1] -= 1
    m["blocks"][:] = rows


def put(name, data):
    def change(m, f):
        del m[name]
        m.create_dataset(name, data=data)

    return change


def in_block(name, value, checksum=True):
    """Replaces the first bytes or numbers of a block, which then may have the checksum of a sound one."""

    def change(m, f):
        b, unit, position, first = largest(m)
        at = {"scales": unit, "positions": position, "values": first}[name]
        m[name][at : at + len(value)] = value
        _, positions, values_, _ = (int(x) for x in m["blocks"][b])
        count = [int(n) for n in f["index/count"] for _ in range(-(-int(n) // 65536))][b]
        assert count <= 65536
        parts = (m["scales"][unit : unit - (-count // 1024)], m["positions"][position : position + positions],
                 m["values"][first : first + values_])  # fmt: skip
        crc = 0
        for part in parts:
            crc = zlib.crc32(part.tobytes(), crc)
        if checksum:
            m["blocks"][b, 3] = np.uint32(crc).view(np.int32)

    return change


def replace_hashes(count):
    def change(model, file):
        del file["base/sha256"]
        file["base/sha256"] = np.full(count, b"0" * 64)

    return change


DAMAGE = {
    "more hashes than files": (replace_hashes(9), "/base/sha256: has 9 entries"),
    "no hashes": (replace_hashes(0), "/base/sha256"),
    "no blocks": (lambda m, f: m.__delitem__("blocks"), "there is no dataset blocks"),
    "no values": (lambda m, f: m.__delitem__("values"), "there is no dataset values"),
    "blocks of another type": (put("blocks", np.zeros((70, 4), np.int64)), "dataset blocks is I64"),
    "too few blocks": (put("blocks", np.zeros((69, 4), np.int32)), "dataset blocks is I32 [69, 4]"),
    "too few scales": (put("scales", np.zeros(3, np.float32)), "dataset scales is F32 [3]"),
    "compressed positions": (lambda m, f: (m.__delitem__("positions"), m.create_dataset(
        "positions", data=np.zeros(100, np.uint8), compression="gzip")), "expected a contiguous dataset"),
    "positions cut off": (put("positions", np.zeros(100, np.uint8)), "dataset positions has 100 entries, but its blocks"),
    "values too long": (put("values", np.zeros(10**6, np.uint8)), "dataset values has 1000000 entries, but its blocks"),
    "negative count": (set_row((0, 0), -1), "block 0 keeps -1 of"),
    "too many kept": (set_row((0, 0), 65537), "block 0 keeps 65537 of"),
    "negative bytes": (set_row((0, 1), -5), "in -5 and"),
    "bytes beyond the end": (set_row((3, 2), 2**31 - 1), "dataset values has"),
    "bytes of another block": (move_bytes, "checksum"),
    "another checksum": (set_row((0, 3), 1), "checksum"),
    "a position changed": (in_block("positions", [3, 255], False), "checksum"),
    "a value changed": (in_block("values", [1, 2, 3], False), "checksum"),
    "a scale changed": (in_block("scales", [1.0], False), "checksum"),
    "a wide shift": (in_block("positions", [17]), "more than 16 low bits"),
    "another shift": (in_block("positions", [16]), "is damaged"),
    "no Deflate": (in_block("values", [255] * 20), "do not unpack"),
    "an endless scale": (in_block("scales", [np.inf]), "not finite"),
    "other bits": (lambda m, f: f["index"].attrs.__setitem__("value_bits", 5), "value_bits: expected 4, 8 or 16, found 5"),
    "16 bits": (lambda m, f: f["index"].attrs.__setitem__("value_bits", 16), "do not unpack"),
    "a shorter index": (lambda m, f: (f["index"].__delitem__("count"), f["index"].create_dataset("count", data=[1])), "different lengths"),
    "another count": (lambda m, f: f["index/count"].__setitem__(0, 7), "has 7 elements, but"),
    "another name": (lambda m, f: f["index/name"].__setitem__(0, b"x"), "tensor x is not in the base"),
    "a name twice": (lambda m, f: f["index/name"].__setitem__(1, f["index/name"][0]), "index"),
    "another type": (lambda m, f: f["index/dtype"].__setitem__(0, b"I8"), "expected a floating-point type, found 'I8'"),
    "no index": (lambda m, f: f.__delitem__("index"), "/index/name"),
    "a later version": (lambda m, f: f.attrs.__setitem__("format_version", 2), "expected format_version 1, found 2"),
    "no config": (lambda m, f: m.attrs.__setitem__("config_json", "{"), "attribute config_json"),
    "no hashes": (lambda m, f: f["base"].__delitem__("sha256"), "/base/sha256"),
    "no sizes": (lambda m, f: f["base"].__delitem__("size"), "/base/size"),
    "no base": (lambda m, f: f.__delitem__("base"), "/base has no attribute 'name'"),
    "no path": (lambda m, f: f["base"].attrs.__delitem__("path"), "has no tensors"),
    "a chunked head": (lambda m, f: (f["heads/plain"].__delitem__("classifier.bias"), f["heads/plain"].create_dataset(
        "classifier.bias", data=np.zeros(10, np.float32), chunks=(5,))), "expected a contiguous dataset"),
    "a head of the base": (lambda m, f: f["heads/plain"].create_dataset(
        "vit.layernorm.bias", data=np.zeros(128, np.float32)), "vit.layernorm.bias of the head is in the base too"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_archives_are_refused(tmp_path, archive, case):
    change, message = DAMAGE[case]
    shutil.copy(archive, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        change(f["models/plain"], f)
    result = expand(f"{tmp_path}/a.h5#plain", tmp_path / "out", code=3)
    assert message in result.err and "a.h5" in result.err, result
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 100, 5000, 100000, -1])
def test_a_truncated_archive_is_refused(tmp_path, archive, size):
    (tmp_path / "a.h5").write_bytes(archive.read_bytes()[:size])
    assert "a.h5" in expand(f"{tmp_path}/a.h5#plain", tmp_path / "out", code=3).err
