"""Ranks on several hosts: network namespaces with addresses and host names of their own, no shared memory between them,
nothing but TCP."""

import re

import hosts
import numpy as np
import test_groups
import tools

models = test_groups.models


def merge(folder, config, out, *options, **where):
    file = tools.write_config(folder / "c.yaml", config)
    result = hosts.run(folder, tools.MERGE, file, out, *options, **where)
    assert result.code == 0, result
    return result


def test_the_hosts_are_several(tmp_path):
    """Else the other tests prove nothing."""
    script = 'touch /dev/shm/$$; echo "$(hostname) $(ip -4 -o address show scope global) $(ls /dev/shm | grep -c "^[0-9]*$")"'
    result = hosts.run(tmp_path, "sh", "-c", script, hosts=3)
    for i in (1, 2, 3):
        assert re.search(rf"host{i} .*inet {hosts.NET}\.{i}/24.* 1\b", result.out), result


def test_a_search_on_two_hosts(data, whole, tmp_path):
    result = merge(tmp_path, tools.small_search(data), tmp_path / "out.h5", "-v", ranks_each=2)
    assert "ranks: 4, at most 2 a node" in result.out, result
    assert tools.search_content(tmp_path / "out.h5") == whole


def test_a_search_begun_elsewhere(data, whole, tmp_path):
    """What one host has begun three others finish."""
    kept = {"snapshot": str(tmp_path / "kept.h5")}
    tools.merge(tools.small_search(data, generations=2, **kept), tmp_path / "short.h5")
    result = merge(tmp_path, tools.small_search(data, **kept), tmp_path / "out.h5", "--resume", hosts=3)
    assert "going on from" in result.out, result
    assert tools.search_content(tmp_path / "out.h5") == whole


def test_a_folder_written_by_three_hosts(tmp_path):
    config = tools.recipe("digits-vit", "ties", {"density": 0.3, "weight": 0.5}, names=["plain", "blur"],
                          output={"shard_size": "300KB"})  # fmt: skip
    tools.merge(config, tmp_path / "one")
    merge(tmp_path, config, tmp_path / "three", hosts=3)
    assert len(list((tmp_path / "three").glob("*.safetensors"))) > 3
    assert tools.same_tensors(tools.read_model(tmp_path / "one"), tools.read_model(tmp_path / "three"))


def test_a_matrix_shared_by_two_hosts(models, tmp_path):
    """ScaLAPACK's grid spans hosts."""
    needs = [test_groups.least(models, "iso_c", ranks, tmp_path)[0] for ranks in (1, 2)]
    tools.merge(test_groups.config(models, "iso_c"), tmp_path / "one.h5")
    result = merge(tmp_path, test_groups.config(models, "iso_c", sum(needs) // 2), tmp_path / "two.h5", "-v")
    assert re.search(r"groups of 2 ranks share 1 tensor", result.out), result
    one, two = tools.read_model(tmp_path / "one.h5"), tools.read_model(tmp_path / "two.h5")
    for name, (_, want) in one.items():
        assert np.allclose(two[name][1], want, rtol=1e-6, atol=1e-6), name
