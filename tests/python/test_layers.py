"""The layer rule, the owners of foreign headers, the bounds on sizes, and the list of sources in Makefile.am."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]

LAYER = {
    "base": 0,
    "comm": 1, "tensor": 1, "rng": 1, "json": 1, "blas": 1, "schedule": 1,
    "h5": 2, "config": 2, "cmaes": 2,
    "model": 3, "report": 3, "dmat": 3,
    "compose": 4, "plan": 4, "svd": 4,
    "delta": 5, "fitness": 5,
    "merge": 6, "search": 6,
    "run": 7,
    "cli": 8,
}  # fmt: skip

# Headers whose name is not their module's.
MODULE_OF_HEADER = {"comm_mpi": "comm", "command": "fitness", "convert": "run", "eval": "run", "factors": "delta", "flush": "base",
                    "inspect": "run", "watch": "base", "archive": "model"}  # fmt: skip

OWNERS = {
    "mpi.h": {"comm", "h5", "dmat", "cli"},
    "nps/comm_mpi.h": {"comm", "h5", "dmat", "cli"},
    "hdf5.h": {"h5"},
    "yaml.h": {"config"},
    "jansson.h": {"json"},
    "openssl/": {"model"},
    "zlib.h": {"model"},
}

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^">]+)[">]', re.M)


def module_of(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] == "src":
        return parts[1]
    return MODULE_OF_HEADER.get(path.stem, path.stem)


def sources():
    files = sorted(ROOT.glob("include/nps/*.h")) + sorted(ROOT.glob("src/**/*.[ch]"))
    assert files, "no sources found"
    return files


def without_comments(text):
    """Blank comments and literals, keeping the line breaks."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
    return token.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def include_problems(path, text):
    module, problems = module_of(path), []
    where = path.relative_to(ROOT)
    if module not in LAYER:
        return [f"{where}: unknown module '{module}', add it to LAYER"]
    for name in INCLUDE.findall(text):
        for header, owners in OWNERS.items():
            if name == header or (header.endswith("/") and name.startswith(header)):
                if module not in owners:
                    problems.append(f"{where}: {name} belongs to {', '.join(sorted(owners))}")
        if name.startswith("nps/"):
            other = pathlib.Path(name).stem
            other = MODULE_OF_HEADER.get(other, other)
            if other not in LAYER:
                problems.append(f"{where}: {name} is of no known module")
            elif other != module and LAYER[other] >= LAYER[module]:
                problems.append(f"{where}: {module} (layer {LAYER[module]}) includes {name} (layer {LAYER[other]})")
        elif "/" in name and name.endswith(".h") and name.split("/")[-2] in LAYER:
            if name.split("/")[-2] != module:
                problems.append(f"{where}: private header {name} of another module")
    return problems


def function_sizes(text):
    """Give (line, lines) of every function body: a brace at level 0 after a closing parenthesis, to its partner."""
    found, depth, start, before = [], 0, None, ""
    for number, line in enumerate(without_comments(text).split("\n"), 1):
        if line.lstrip().startswith("#") or before.endswith("\\"):
            before = line.rstrip() if line.rstrip().endswith("\\") else ""
            continue
        for char in line:
            if char == "{":
                if depth == 0:
                    start = number if before.rstrip().endswith(")") else None
                depth += 1
            elif char == "}":
                depth -= 1
                if depth == 0 and start is not None:
                    found.append((start, number - start + 1))
            if not char.isspace():
                before = char
    return found


def test_includes_follow_the_layers():
    problems = [p for path in sources() for p in include_problems(path, path.read_text())]
    assert not problems, "\n" + "\n".join(problems)


def test_the_check_sees_violations():
    base, plan = ROOT / "src/base/x.c", ROOT / "src/plan/x.c"
    assert include_problems(base, '#include "nps/tensor.h"\n')
    assert include_problems(ROOT / "src/tensor/x.c", '#include "nps/rng.h"\n')
    assert include_problems(plan, "#include <mpi.h>\n")
    assert include_problems(plan, '#include "nps/comm_mpi.h"\n')
    assert include_problems(plan, "  # include <openssl/evp.h>\n")
    assert include_problems(plan, '#include "../model/reader.h"\n')
    assert include_problems(ROOT / "src/unheard/x.c", "")
    assert not include_problems(plan, '#include "nps/plan.h"\n#include "nps/model.h"\n#include "cost.h"\n')
    body = "int f(void) {\n  if (1) {\n  }\n  return '{';\n}\nstruct s {\n  int x;\n};\n"
    assert function_sizes(body) == [(1, 5)]


def test_world_communicator_only_in_cli():
    for path in sources():
        if module_of(path) != "cli":
            assert "MPI_COMM_WORLD" not in without_comments(path.read_text()), path


def test_file_sizes():
    for path in sources():
        lines = path.read_text().count("\n")
        assert lines <= MAX_FILE_LINES, f"{path.relative_to(ROOT)} has {lines} lines, at most {MAX_FILE_LINES}"


def test_function_sizes():
    count = 0
    for path in sorted(ROOT.glob("src/**/*.[ch]")):
        for line, lines in function_sizes(path.read_text()):
            count += 1
            where = f"{path.relative_to(ROOT)}:{line}"
            assert lines <= MAX_FUNCTION_LINES, f"{where}: a function of {lines} lines, at most {MAX_FUNCTION_LINES}"
    assert count > 0


def test_makefile_lists_everything():
    words = set((ROOT / "Makefile.am").read_text().split())
    for path in sources():
        assert str(path.relative_to(ROOT)) in words, f"Makefile.am does not list {path.relative_to(ROOT)}"
    for path in sorted(ROOT.glob("tests/serial/test_*.c")) + sorted(ROOT.glob("tests/mpi/test_*.c")):
        program = str(path.relative_to(ROOT).with_suffix(""))
        assert program in words, f"Makefile.am does not list {program}"
