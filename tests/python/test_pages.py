"""Man pages and completion, as make writes them, in the programs that read them; and what make install puts where."""

import os
import subprocess
import sys

import pytest
import tools

PROGRAMS = ["nps-convert", "nps-eval", "nps-inspect", "nps-merge"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_man_page(program):
    page = tools.BUILD / f"{program}.1"
    result = subprocess.run(["groff", "-man", "-Tascii", "-P-cbou", "-ww", "-rLL=78n", str(page)], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr
    words = " ".join(result.stdout.split())
    assert all(f" {title} " in words for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS", "SEE ALSO"))
    assert f"{program} - " in words and "-h, --help Print this text and exit." in words


def complete(folder, program, *words):
    """What bash offers for the last word; None where it completes names of files."""
    script = f"""
      source {tools.BUILD}/pages/{program}
      compopt() {{ echo "compopt $*"; }}
      COMP_WORDS=({" ".join(map(repr, (program, *words)))}) COMP_CWORD={len(words)}
      _{program.replace("-", "_")}
      echo "${{COMPREPLY[*]}}" """
    result = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result
    if result.stdout.startswith("compopt +o default"):
        return []
    return result.stdout.split() or None


def test_bash_completion(tmp_path):
    assert complete(tmp_path, "nps-merge", "c.yaml", "--ra") == ["--ranks", "--ranks-per-node"]
    assert complete(tmp_path, "nps-merge", "c.yaml", "--ou") == ["--output"]
    assert complete(tmp_path, "nps-merge", "--ranks", "") == []
    assert complete(tmp_path, "nps-merge", "--set", "a") == []
    for words in (["c"], ["--log", "f"], ["-o", "f"], ["--log", "="], ["--log", "=", "f"]):
        assert complete(tmp_path, "nps-merge", *words) is None, words
    assert "--group" in complete(tmp_path, "nps-eval", "-")


@pytest.mark.parametrize("program", PROGRAMS)
def test_zsh_completion(program):
    result = subprocess.run(["zsh", "-n", f"{tools.BUILD}/pages/_{program}"], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result


def test_installed_tree(tmp_path):
    make = subprocess.run(["make", "-C", str(tools.BUILD), "install", f"DESTDIR={tmp_path}", "prefix=/opt/nps"], capture_output=True, text=True)
    assert make.returncode == 0, make.stdout + make.stderr
    prefix = tmp_path / "opt/nps"
    assert {str(f.relative_to(prefix)) for f in prefix.rglob("*") if f.is_file()} == {
        *(f"bin/{p}" for p in PROGRAMS),
        *(f"share/man/man1/{p}.1" for p in PROGRAMS),
        *(f"share/bash-completion/completions/{p}" for p in PROGRAMS),
        *(f"share/zsh/site-functions/_{p}" for p in PROGRAMS),
        *(f"share/nps-merge/python/{f}.py" for f in ("nps_merge", "clip_head", "plot_search", "plot_spectrum", "prepare_data")),
    }
    read = "import nps_merge; print(len(nps_merge.open('bytes-llama/base')))"
    env = {**tools.environment(), "PYTHONPATH": str(prefix / "share/nps-merge/python"), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run([sys.executable, "-c", read], cwd=tools.MODELS, env=env, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "39\n", result
    programs = ("clip_head.py", "plot_search.py", "plot_spectrum.py", "prepare_data.py")
    assert all(os.access(prefix / "share/nps-merge/python" / f, os.X_OK) for f in programs)
