"""nps-convert: folders and files to HDF5 and back, byte for byte."""

import json

import h5py
import numpy as np
import pytest
import tools


def convert(source, target, *options, ranks=0, code=0):
    result = tools.run(tools.CONVERT, source, target, *options, ranks=ranks)
    assert result.code == code, result
    return result


@pytest.mark.parametrize("model", ["bytes-llama/french", "digits-vit/parity"])
def test_round_trip(model, tmp_path):
    """Folder → HDF5 → folder → HDF5: the same tensors in their types, by the safetensors library too, the same config."""
    import safetensors.torch
    import torch

    source = tools.MODELS / model
    first = None
    for ranks in (1, 3):
        work = tmp_path / str(ranks)
        work.mkdir()
        convert(source, work / "m.h5", ranks=ranks)
        convert(work / "m.h5", work / "m", ranks=ranks)
        convert(work / "m", work / "again.h5", ranks=ranks)
        original = tools.read_model(source)
        for form in ("m.h5", "m", "again.h5"):
            assert tools.same_tensors(original, tools.read_model(work / form)), form
        assert (work / "m/config.json").read_bytes() == (source / "config.json").read_bytes()
        with h5py.File(work / "m.h5") as file:
            assert file.attrs["config_json"] == (source / "config.json").read_text()
        weights = (work / "m/model.safetensors").read_bytes()
        first = first or weights
        assert weights == first, "the ranks differ"
    loaded = safetensors.torch.load_file(tmp_path / "1/m/model.safetensors")
    stored = {}
    for file in source.glob("*.safetensors"):
        stored.update(safetensors.torch.load_file(file))
    assert loaded.keys() == stored.keys()
    assert all(loaded[n].dtype == t.dtype and torch.equal(loaded[n], t) for n, t in stored.items())


def test_every_type_and_small_files(tmp_path):
    """Integers, booleans, NaN and infinity, empty and scalar tensors; tokenizer files; more ranks than tensors."""
    random = np.random.default_rng(1)
    tensors = {}
    for dtype, numpy in tools.NUMPY.items():
        raw = random.integers(0, 256, 24 * np.dtype(numpy).itemsize, dtype=np.uint8)
        array = raw.view(numpy) if dtype != "BOOL" else raw[:24] > 127
        tensors[f"x.{dtype}"] = (dtype, array.reshape(4, 6))
    tensors["nan"] = ("F32", np.array([np.nan, np.inf, -np.inf, -0.0], np.float32))
    tensors["empty"] = ("I64", np.zeros((0, 3), np.int64))
    tensors["scalar"] = ("F16", np.array(1.5, np.float16))
    source = tools.write_folder(tmp_path / "s", tensors, shards=3)
    small = {"tokenizer.json": b'{"a": 1}', "spm.model": bytes(range(256)), "generation_config.json": b"{}"}
    for name, data in small.items():
        (source / name).write_bytes(data)
    convert(source, tmp_path / "m.h5", ranks=5)
    convert(tmp_path / "m.h5", tmp_path / "m", ranks=2)
    convert(tmp_path / "m/model.safetensors", tmp_path / "file.h5")
    for form in ("m.h5", "m", "file.h5"):
        assert tools.same_tensors(tools.read_model(source), tools.read_model(tmp_path / form)), form
    for name, data in small.items():
        assert (tmp_path / "m" / name).read_bytes() == data
        with h5py.File(tmp_path / "file.h5") as file:
            assert file["tokenizer"][name][()].tobytes() == data


def test_origin_is_told(tmp_path):
    """The recipe of what is converted is kept as a comment of one that gives the same tensors; provenance names the source."""
    out = tmp_path / "merged.h5"
    tools.merge(tools.recipe("bytes-llama", "ties", {"density": 0.5}, {"weight": 1.0}, dtype="bfloat16"), out)
    convert(out, tmp_path / "folder", ranks=2)
    recipe = (tmp_path / "folder/nps-merge.yaml").read_text()
    assert "#   merge_method: ties" in recipe
    origin = json.loads((tmp_path / "folder/provenance.json").read_text())
    assert [i["path"] for i in origin["inputs"]] == [str(out)] and origin["inputs"][0]["size"] == out.stat().st_size
    tools.merge(tmp_path / "folder/nps-merge.yaml", tmp_path / "again.h5")
    assert tools.same_tensors(tools.read_model(out), tools.read_model(tmp_path / "again.h5"))


def test_refusals(tmp_path):
    source = tools.write_folder(tmp_path / "s", {"a": ("F32", np.ones(3, np.float32))})
    convert(source, tmp_path / "m.h5")
    before = (tmp_path / "m.h5").read_bytes()
    assert "--force replaces it" in convert(source, tmp_path / "m.h5", ranks=2, code=2).err
    convert(source, tmp_path / "m.h5", "--force")
    assert (tmp_path / "m.h5").read_bytes() == before, "the same bytes again"
    assert "would replace the input" in convert(source, source, "--force", code=2).err
    assert "expected a folder" in convert(source, tmp_path / "m.safetensors", code=2).err
    assert "missing argument DST" in tools.run(tools.CONVERT, source).err
    assert "nothing" in convert(tmp_path / "nothing", tmp_path / "x.h5", ranks=2, code=3).err
    fp8 = tmp_path / "fp8"
    fp8.mkdir()
    header = b'{"q":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}      '
    (fp8 / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    assert "tensor q has type F8_E4M3" in convert(fp8, tmp_path / "x.h5", code=3).err
    convert(fp8, tmp_path / "fp8-copy")
    assert (tmp_path / "fp8-copy/model.safetensors").read_bytes().endswith(b"abcd")
    assert not (tmp_path / "x.h5").exists()
