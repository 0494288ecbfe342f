"""Folders of sentence-transformers: modules.json, and the folders that it names, travel with the merged model."""

import json
import sys

import h5py
import numpy as np
import pytest
import tools

SMALL = {
    "config_sentence_transformers.json": b'{"prompts": {}}',
    "sentence_bert_config.json": b'{"max_seq_length": 16}',
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "2_Dense/config.json": b'{"in_features": 4, "out_features": 2}',
    "2_Dense/model.safetensors": bytes(range(256)),
}


def write_modules(folder, *paths):
    (folder / "modules.json").write_text(json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]))


def write_files(folder, files, *paths):
    """As the Hugging Face cache has them: links to files elsewhere."""
    write_modules(folder, *(paths or ("", "1_Pooling", "2_Dense", "3_Normalize")))
    for name, data in files.items():
        blob = folder.parent / "blobs" / f"{folder.name}-{name.replace('/', '-')}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(data)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(blob)


@pytest.fixture
def models(tmp_path):
    """(folder, config): a base and two models, none of sentence-transformers yet."""
    for i, name in enumerate(("base", "one", "two")):
        tools.write_folder(tmp_path / name, {"x.weight": ("F32", np.arange(12, dtype=np.float32).reshape(3, 4) * i)}, {})
        (tmp_path / name / "tokenizer.json").write_text("{}")
    config = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "parameters": {"weight": 1},
              "models": [{"model": str(tmp_path / name)} for name in ("one", "two")]}  # fmt: skip
    return tmp_path, config


def files_of(folder):
    """Everything below a folder but what every output has."""
    own = {"README.md", "config.json", "model.safetensors", "nps-merge.yaml", "provenance.json", "tokenizer.json"}
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name not in own}


def test_from_the_base_through_both_forms(models):
    """Byte for byte, on any number of ranks; not merged weights are told; HDF5 holds them as groups."""
    folder, config = models
    write_files(folder / "base", SMALL)
    write_files(folder / "one", {"1_Pooling/config.json": b"another", "2_Dense/model.safetensors": b"another"})
    (folder / "base/1_Pooling/.hidden").write_text("x")
    (folder / "base/1_Pooling/within").mkdir()
    (folder / "base/other").mkdir()
    (folder / "base/other/config.json").write_text("of no module")
    want = {"modules.json": (folder / "base/modules.json").read_bytes(), **SMALL}
    for ranks in (0, 3):
        result = tools.merge(config, folder / f"m{ranks}", ranks=ranks)
        assert files_of(folder / f"m{ranks}") == want
        assert result.err.count("2_Dense/model.safetensors: is copied as it is") == 1, result
        assert result.err.count("1_Pooling/within: is not copied") == 1, result
        tools.merge(config, folder / f"m{ranks}.h5", ranks=ranks)
    assert (folder / "m0.h5").read_bytes() == (folder / "m3.h5").read_bytes()
    with h5py.File(folder / "m0.h5") as file:
        assert set(file["tokenizer/2_Dense"]) == {"config.json", "model.safetensors"}
        assert file["tokenizer/2_Dense/model.safetensors"][()].tobytes() == SMALL["2_Dense/model.safetensors"]
    result = tools.run(tools.INSPECT, folder / "m0.h5", "--json")
    assert set(want) <= set(json.loads(result.out)["files"]), result
    for source, target, ranks in (("m0.h5", "again", 0), ("again", "again.h5", 2), ("again.h5", "last", 0)):
        result = tools.run(tools.CONVERT, folder / source, folder / target, ranks=ranks)
        assert result.code == 0, result
    assert files_of(folder / "last") == want
    tools.merge(config, folder / "plain", "--no-copy-tokenizer")
    assert files_of(folder / "plain") == want and not (folder / "plain/tokenizer.json").exists()


def test_from_the_first_model_that_has_them(models):
    """The base is no model of sentence-transformers, the fine-tuned ones are."""
    folder, config = models
    write_files(folder / "two", SMALL)
    (folder / "two/preprocessor_config.json").write_text("its own")
    result = tools.merge(config, folder / "m", ranks=2)
    assert "modules.json, and what it names for sentence-transformers, is that of two" in result.err, result
    assert files_of(folder / "m") == {"modules.json": (folder / "two/modules.json").read_bytes(), **SMALL}
    tools.merge({**config, "models": [{"model": str(folder / "two")}]}, folder / "two.h5")
    tools.merge({**config, "models": [{"model": str(folder / "two.h5")}]}, folder / "from-h5")
    assert files_of(folder / "from-h5") == files_of(folder / "m")


def test_without_folders(models):
    """Modules in the model's own folder, those that have no files, a list twice the same, and what is no list."""
    folder, config = models
    write_modules(folder / "base", ".", "1_Normalize", "1_Normalize")
    tools.merge(config, folder / "a")
    assert set(files_of(folder / "a")) == {"modules.json"}
    (folder / "base/modules.json").write_text('{"path": "blobs"}')
    tools.merge(config, folder / "b")
    assert set(files_of(folder / "b")) == {"modules.json"}


@pytest.mark.parametrize("path", ["../secret", "/etc", "a/b", ".git", "config.json"])
def test_paths_that_are_no_folders_of_it(path, models):
    folder, config = models
    (folder / "secret").mkdir()
    (folder / "secret/config.json").write_text("secret")
    write_modules(folder / "base", "", path)
    result = tools.merge(config, folder / "m", code=3)
    assert "base/modules.json: path: expected the name of a folder beside it" in result.err and path in result.err, result
    assert not (folder / "m").exists()


def test_names_in_hdf5_that_are_no_folders(models):
    folder, config = models
    write_files(folder / "base", SMALL)
    tools.merge(config, folder / "m.h5")
    for name, file_name in (("../x", ".."), ("a.b/x", "a.b"), ("1_Pooling/a/b", "1_Pooling/a")):
        (folder / "bad.h5").write_bytes((folder / "m.h5").read_bytes())
        with h5py.File(folder / "bad.h5", "r+") as file:
            file[f"tokenizer/{name}"] = np.zeros(3, np.uint8)
        result = tools.run(tools.CONVERT, folder / "bad.h5", folder / "out")
        assert result.code == 3 and f"/tokenizer/{file_name}" in result.err, result
        assert not (folder / "out").exists()


def test_replacing_a_folder_with_modules(models):
    """An old output and what an interrupted run left are removed with the folders of modules, but no other folder is."""
    folder, config = models
    write_files(folder / "base", SMALL)
    tools.merge(config, folder / "m")
    (folder / ".m.partial/1_Pooling").mkdir(parents=True)
    (folder / ".m.partial/1_Pooling/config.json").write_text("half of i")
    result = tools.merge(config, folder / "m", "--force", ranks=2)
    assert ".m.partial: left by an interrupted run, removed" in result.err, result
    assert not list(folder.glob(".m*")) and len(files_of(folder / "m")) == 1 + len(SMALL)
    (folder / "m/1_Pooling/mine").mkdir()
    assert "has a folder in it (1_Pooling)" in tools.merge(config, folder / "m", "--force", code=2).err
    (folder / "m/1_Pooling/mine").rmdir()
    (folder / "m/mine").mkdir()
    assert "has a folder in it (mine)" in tools.merge(config, folder / "m", "--force", code=2).err
    assert len(files_of(folder / "m")) == 1 + len(SMALL)


def test_a_command_gets_them(tmp_path):
    """Candidates are handed over with the folders of modules."""
    script = """if True:
        import json, os, sys
        for line in sys.stdin:
            request = json.loads(line)
            names = [os.path.join(at, name) for at, _, names in os.walk(request["model"], followlinks=True) for name in names]
            texts = {os.path.relpath(name, request["model"]): open(name).read() for name in names if "Pool" in name}
            open(sys.argv[1], "a").write(json.dumps(texts) + "\\n")
            score = {"correct": 1, "total": 2, "nll_sum": 1.0}
            print(json.dumps({"id": request["id"], "scores": {task: score for task in request["tasks"]}}), flush=True)
    """
    data = tools.write_small_data(tmp_path / "data.h5", 2)
    config = tools.small_search(data, stages=["prune"], generations=1, population=4)
    base = tools.copy_folder(config["base_model"], tmp_path / "base")
    write_files(base, {"1_Pooling/config.json": b"p", "1_Pooling/more.json": b"q"})
    (tmp_path / "shared").mkdir()
    config["base_model"] = str(base)
    config["fitness"].update({"evaluator": "command", "command": [sys.executable, "-S", "-c", script, str(tmp_path / "told")],
                              "directory": str(tmp_path / "shared")})  # fmt: skip
    tools.merge(config, tmp_path / "out", ranks=2)
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert told and all(texts == {"1_Pooling/config.json": "p", "1_Pooling/more.json": "q"} for texts in told)
    assert tools.wait_for(lambda: not list((tmp_path / "shared").iterdir()))
