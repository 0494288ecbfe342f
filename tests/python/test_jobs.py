"""What jobs/ has for clusters, as far as it can be tried without Spack and Apptainer: the recipe with a stand-in for Spack's
module, the container's scripts in a shell, its packages against what the programs load."""

import pathlib
import re
import runpy
import subprocess
import sys
import types

import pytest
import tools

JOBS = tools.ROOT / "jobs"


def output(*words):
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result
    return result.stdout


# ---- Spack ---------------------------------------------------------------------------------------------------------------


class Part:
    """A spec, a dependency, a list of libraries: whatever a recipe asks for is a word that tells where it comes from."""

    def __init__(self, name):
        self.name = name

    def __getitem__(self, key):
        return Part(f"{self.name}-{key}")

    def __getattr__(self, key):
        return Part(f"{self.name}-{key}")

    def __str__(self):
        return self.name

    def satisfies(self, condition):
        return condition in self.name


@pytest.fixture
def recipe(monkeypatch):
    """The package's class, and what its directives were given: {directive: [(arguments, keywords)]}."""
    said = {}
    module = types.ModuleType("spack.package")
    for directive in ("version", "variant", "depends_on"):
        setattr(module, directive, lambda *a, _to=said.setdefault(directive, []), **k: _to.append((a, k)))
    module.AutotoolsPackage, module.Executable = type("AutotoolsPackage", (), {}), None
    monkeypatch.setitem(sys.modules, "spack", types.ModuleType("spack"))
    monkeypatch.setitem(sys.modules, "spack.package", module)
    return runpy.run_path(str(JOBS / "spack/packages/nps-merge/package.py"))["NpsMerge"], said


def test_the_recipe_gives_what_configure_takes(recipe):
    cls, said = recipe
    options = output(tools.ROOT / "configure", "--help")
    package = cls()
    for condition, tests in (("", "--disable-tests"), ("+tests", "--enable-tests")):
        package.spec = Part("spec" + condition)
        arguments = package.configure_args()
        assert arguments.pop() == tests
        for argument in arguments:
            name, value = argument.split("=")
            assert re.search(rf"^  {name}\s", options, re.M) and value.startswith("spec"), argument
    assert "--disable-tests" in options
    [((version,), _)] = said["version"]
    assert f"AC_INIT([nps-merge], [{version}]" in (tools.ROOT / "configure.ac").read_text()
    package.prefix, paths = "/opt/nps", []
    package.setup_run_environment(types.SimpleNamespace(prepend_path=lambda *words: paths.append(words)))
    assert paths == [("PYTHONPATH", "/opt/nps/share/nps-merge/python")]


# ---- Apptainer -----------------------------------------------------------------------------------------------------------


def stages():
    """Of every stage its header {key: value} and its sections {name: text}."""
    found = []
    for line in (JOBS / "nps-merge.def").read_text().splitlines():
        if line.startswith("Bootstrap:"):
            found.append(({}, {}))
            section = None
        if not found or (section is None and not line.strip()):
            continue
        if line.startswith("%"):
            section = line[1:]
            found[-1][1][section] = ""
        elif section is None:
            key, value = line.split(": ")
            found[-1][0][key] = value
        else:
            found[-1][1][section] += line + "\n"
    return found


def test_the_containers_scripts():
    (first, build), (second, final) = stages()
    assert set(first) == set(second) == {"Bootstrap", "From", "Stage"} and first["From"] == second["From"]
    assert set(build) == {"files", "post"}
    assert set(final) == {f"files from {first['Stage']}", "post", "environment", "runscript", "help"}
    for name, text in [*build.items(), *final.items()]:
        if name in ("post", "environment", "runscript"):
            result = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True)
            assert result.returncode == 0 and not result.stderr, (name, result)
    for script in re.findall(r"jobs/\S+\.sh", build["post"]):
        assert (tools.ROOT / script).stat().st_mode & 0o111, script
    assert "--prefix=/opt/nps-merge " in build["post"] and "/opt/nps-merge" in final["files from build"]


def test_the_container_has_the_libraries():
    """Those of the programs here come from packages that the container installs, or that these depend on."""
    post = stages()[1][1]["post"].replace("\\\n", " ")
    listed = re.search(r"--no-install-recommends (.+)", post).group(1).split()
    given = {"libc6", *listed}
    for package in listed:
        depends = output("dpkg-query", "-W", "-f", "${Depends}", package)
        given |= {word.split()[0].split(":")[0] for word in re.split(r"[,|]", depends) if word.strip()}
    files = {}
    for program in (tools.MERGE, tools.INSPECT, tools.EVAL, tools.CONVERT):
        paths = dict(re.findall(r"(\S+) => (\S+)", output("ldd", program)))
        needed = set(re.findall(r"NEEDED.*\[(.+)\]", output("readelf", "-d", program)))
        files |= {str(pathlib.Path(paths[n]).resolve()): n for n in needed if n in paths}
    assert any("hdf5" in f for f in files)
    # A package may name /lib what lies in /usr/lib.
    asked = [f for file in files for f in (file, file.removeprefix("/usr"))]
    owners = subprocess.run(["dpkg", "-S", *asked], capture_output=True, text=True).stdout
    owner_of = {pathlib.Path(path).name: owner for owner, path in re.findall(r"^([^:\s]+)\S*: (\S+)$", owners, re.M)}
    for file in files:
        owner = owner_of[pathlib.Path(file).name]
        assert owner in given, f"{file} of {owner}, which the container lacks"
