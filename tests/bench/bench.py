#!/usr/bin/env python3
"""Measure nps-merge, and print tables for docs/performance.md.

Every merge is measured beside the floor (floor.c: N processes read all inputs, hash them as provenance does and write
as many bytes as the output has), in turn, on the same files, with the inputs in the page cache. `make bench` runs this;
BENCH_ARGS='…' passes options on. Tables go to stdout, progress to stderr. Outputs are removed, checkpoints kept.
"""
import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    import make_checkpoints
except ModuleNotFoundError as error:
    sys.exit(f"bench.py: {error}: run it by `make bench`, or with the Python that `tests/venv.sh --path` names")

WEIGHT, DENSITY = {"weight": 0.3}, {"weight": 0.3, "density": 0.5}
METHODS = {"linear": WEIGHT, "task_arithmetic": WEIGHT, "ties": DENSITY, "dare_ties": DENSITY, "breadcrumbs": DENSITY,
           "della": DENSITY, "sce": {}, "ram": {}, "multislerp": WEIGHT, "karcher": {}, "model_stock": {}}  # of a model
USUAL = ("linear", "task_arithmetic", "ties", "dare_ties")
MERGEKIT_OPTIONS = "--no-copy-tokenizer --no-write-model-card --quiet --async-write --out-shard-size 400M".split()
GIB = 1 << 30
RANK_MEMORY = GIB  # what a process of a merge may need, when room is checked
MERGEKIT_MEMORY = 6 * GIB
SAMPLE_SECONDS = 0.02
MEMORY_RANKS = (1, 2, 4)
MEMORY_LIMITS = ("auto", "512MiB")


class BenchError(Exception):
    """What the user has to hear."""


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- Programs and their environment ----------------------------------------------------------------------------------


class Tools:
    """The programs that are measured."""

    def __init__(self, options):
        build = Path(os.environ.get("NPS_BUILDDIR", "."))
        self.merge = self.built(build / "nps-merge")
        self.floor = self.built(build / "tests/bench/floor")
        self.mpirun = shlex.split(os.environ.get("MPIRUN") or "mpirun")
        if not shutil.which(self.mpirun[0]):
            raise BenchError(f"{self.mpirun[0]} was not found: install an MPI, or set MPIRUN")
        if options.mergekit:
            beside = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
            self.mergekit = shutil.which("mergekit-yaml", path=beside)
            if not self.mergekit:
                raise BenchError("mergekit-yaml was not found: tests/venv.sh installs it into the tests' environment")

    @staticmethod
    def built(path):
        if not os.access(path, os.X_OK):
            raise BenchError(f"{path} was not found: run `make bench`, or set NPS_BUILDDIR to the folder of the build")
        return str(path.resolve())

    def version(self, command):
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        return lines[0] if lines else "unknown version"


def environment():
    """Root and more ranks than cores are fine here, nothing is downloaded."""
    return dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                OMPI_MCA_rmaps_base_oversubscribe="1", HF_HUB_OFFLINE="1", NO_COLOR="1")


def end_group(process):
    """End a command and what it started; mpirun needs a moment to end its ranks."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(command, work, watch=None):
    """Run a command and give its seconds. watch(pid) is called again and again while it runs."""
    log = work / "command.log"
    with open(log, "wb") as out:
        start = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(),
                                   start_new_session=True)
        try:
            while watch and process.poll() is None:
                watch(process.pid)
                time.sleep(SAMPLE_SECONDS)
            code = process.wait()
        finally:
            if process.poll() is None:
                end_group(process)
        seconds = time.monotonic() - start
    if code != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise BenchError(f"exit code {code} from: {shlex.join(map(str, command))}\n{tail}")
    return seconds


# ---- Files -----------------------------------------------------------------------------------------------------------


def is_tmpfs(path):
    """Whether a folder lies in memory."""
    best = ("", "")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind = line.split()[:3]
        if Path(path).resolve().is_relative_to(where) and len(where) >= len(best[0]):
            best = (where, kind)
    return best[1] == "tmpfs"


class Family:
    """A base and its fine-tuned models."""

    def __init__(self, options):
        self.folder = Path(options.family) if options.family else self.generated(options)
        self.base = self.folder / "base"
        self.tuned = [self.folder / f"tuned-{i}" for i in range(1, options.models + 1)]
        for model in [self.base, *self.tuned]:
            if not (model / "config.json").exists():
                raise BenchError(f"{model}: no model here; a family has base and tuned-1 … tuned-{options.models}")
        self.files = [file for model in [self.base, *self.tuned] for file in sorted(model.glob("*.safetensors"))]
        self.bytes = sum(file.stat().st_size for file in self.files)

    @staticmethod
    def generated(options):
        folder = Path(options.dir) / f"{options.shape}-{options.models}"
        if folder.exists():
            return folder
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        say(f"making checkpoints of shape {options.shape} in {folder}")
        make_checkpoints.write_family(partial, options.shape, options.models)
        os.sync()
        partial.rename(folder)
        return folder

    def warm(self):
        """Read every file once, so that it lies in the page cache."""
        buffer = bytearray(1 << 20)
        for path in self.files:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


class Workplace:
    """A folder of this run's own for outputs, which is emptied after every command and removed at the end."""

    def __init__(self, folder):
        self.parent = Path(folder)
        self.made = not self.parent.exists()
        self.parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.parent))
        self.tmpfs = is_tmpfs(self.folder)
        self.out = self.folder / "out"
        self.out.mkdir()

    def clear(self):
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def size(self):
        return sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.made and not any(self.parent.iterdir()):
            self.parent.rmdir()


def meminfo(key):
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    raise BenchError(f"/proc/meminfo has no {key}")


def check_room(family, place, bytes_out, processes, mergekit):
    """Refuse what cannot fit; warn when inputs cannot stay in the page cache."""
    free = shutil.disk_usage(place.folder).free
    if free < 1.05 * bytes_out:
        raise BenchError(f"{place.parent}: {free / GIB:.1f} GiB free, an output takes {bytes_out / GIB:.1f} GiB")
    need = processes * RANK_MEMORY + (MERGEKIT_MEMORY if mergekit else 0) + (bytes_out if place.tmpfs else 0)
    if not is_tmpfs(family.folder):
        need += family.bytes
    if meminfo("MemAvailable") < need:
        say(f"warning: {meminfo('MemAvailable') / GIB:.1f} GiB of memory available, about {need / GIB:.1f} GiB wanted: "
            "inputs may not stay in the page cache")


# ---- Commands --------------------------------------------------------------------------------------------------------


def recipe(method, family):
    """The config of a merge, the same for nps-merge and mergekit."""
    lines = [f"merge_method: {method}", "models:"]
    for model in family.tuned:
        lines += [f"  - model: {json.dumps(str(model.resolve()))}", f"    parameters: {json.dumps(METHODS[method])}"]
    base = json.dumps(str(family.base.resolve()))
    if method == "linear":
        lines += [f"  - model: {base}", '    parameters: {"weight": 0.1}']
    else:
        lines.insert(1, f"base_model: {base}")
    return "\n".join(lines + ["dtype: bfloat16", ""])


class Bench:
    def __init__(self, options, tools, family, place):
        self.options, self.tools, self.family, self.place = options, tools, family, place

    def config(self, method):
        path = self.place.folder / f"{method}.yaml"
        path.write_text(recipe(method, self.family))
        return str(path)

    def plan(self, method, ranks, limit="auto"):
        """What nps-merge predicts: bytes read and written, memory of a rank, seconds."""
        log = self.place.folder / "plan.jsonl"
        log.unlink(missing_ok=True)  # events are appended
        run([self.tools.merge, self.config(method), str(self.place.out / "merged.h5"), "--plan", "--ranks", str(ranks),
             "--set", f"resources.memory_per_rank={limit}", "--log", str(log)], self.place.folder)
        for line in log.read_text().splitlines():
            event = json.loads(line)
            if event.get("event") == "plan":
                return event
        raise BenchError(f"{log}: nps-merge --plan wrote no event \"plan\"")

    def timed(self, command, bytes_out, watch=None):
        """Seconds of a command that writes an output, which is checked for its size and removed."""
        try:
            if not self.place.tmpfs:
                os.sync()  # what others have left to write is not this command's
            seconds = run(command, self.place.folder, watch)
            size = self.place.size()
            if not 0.99 * bytes_out <= size <= 1.02 * bytes_out:
                raise BenchError(f"{size} bytes written, {bytes_out} expected, by: {shlex.join(map(str, command))}")
            return seconds
        finally:
            self.place.clear()

    def floor(self, bytes_out, sync):
        return self.timed([self.tools.floor, str(self.options.ranks), str(bytes_out), str(self.place.out / "floor"),
                           str(int(sync)), *map(str, self.family.files)], bytes_out)

    def merge_command(self, method, ranks, limit="auto"):
        return [*self.tools.mpirun, "-np", str(ranks), self.tools.merge, self.config(method),
                str(self.place.out / "merged.h5"), "--quiet", "--set", f"resources.memory_per_rank={limit}"]

    def mergekit(self, method, bytes_out):
        return self.timed([self.tools.mergekit, self.config(method), str(self.place.out / "model"), *MERGEKIT_OPTIONS],
                          bytes_out)

    def speed(self, method, sync, mergekit):
        """Seconds of the floor, nps-merge and, when asked for, mergekit, in turn."""
        bytes_out = self.plan(method, self.options.ranks)["write"]
        check_room(self.family, self.place, bytes_out, self.options.ranks, mergekit)
        self.family.warm()
        floor, merge, peer = [], [], None
        for i in range(self.options.runs):
            floor.append(self.floor(bytes_out, sync))
            merge.append(self.timed(self.merge_command(method, self.options.ranks), bytes_out))
            say(f"{method}: floor {floor[-1]:.2f} s, nps-merge {merge[-1]:.2f} s")
            if mergekit and i == 0:
                peer = self.mergekit(method, bytes_out)
                say(f"{method}: mergekit {peer:.1f} s")
        return floor, merge, peer

    def memory(self, method, ranks, limit):
        """Measured and predicted memory of a rank and seconds of one merge."""
        plan = self.plan(method, ranks, limit)
        check_room(self.family, self.place, plan["write"], ranks, False)
        peaks = Peaks(self.tools.merge, ranks)
        self.family.warm()
        seconds = self.timed(self.merge_command(method, ranks, limit), plan["write"], peaks.sample)
        if len(peaks.most) != ranks:
            raise BenchError(f"{len(peaks.most)} ranks of nps-merge were seen running, {ranks} expected")
        say(f"{method}, {ranks} ranks, {limit}: {max(peaks.most.values()) / (1 << 20):.0f} MiB, {seconds:.2f} s")
        return sorted(peaks.most.values(), reverse=True), plan["memory"], seconds, plan["seconds"]


class Peaks:
    """The most private memory (RssAnon + RssShmem) that each rank of a running merge was seen with."""

    def __init__(self, program, ranks):
        self.program, self.ranks = os.path.realpath(program), ranks
        self.most = {}

    def sample(self, mpirun):
        if len(self.most) < self.ranks:
            self.find(mpirun)
        for pid in self.most:
            try:
                text = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            used = [line.split()[1] for line in text.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
            self.most[pid] = max(self.most[pid], sum(map(int, used)) << 10)

    def find(self, mpirun):
        """Add the descendants of mpirun that run the program: there may be helpers of the MPI in between."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except (FileNotFoundError, ProcessLookupError):
                    continue
        for pid in parents:
            above = pid
            while above in parents and above != mpirun:
                above = parents[above]
            if above == mpirun and pid not in self.most and self.runs_program(pid):
                self.most[pid] = 0

    def runs_program(self, pid):
        try:
            return os.readlink(f"/proc/{pid}/exe") == self.program
        except OSError:
            return False


# ---- Tables ----------------------------------------------------------------------------------------------------------


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print(flush=True)


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def print_facts(options, tools, family, before):
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    what = "a given family" if options.family else f"shape {options.shape}"
    print(f"    make bench BENCH_ARGS={shlex.quote(shlex.join(sys.argv[1:]))}\n")
    print(f"- {model}, {len(os.sched_getaffinity(0))} cores, {meminfo('MemTotal') / GIB:.1f} GiB of memory, "
          f"{platform.system()} {platform.release()}")
    print(f"- {tools.version([tools.merge, '--version'])}, {tools.version([*tools.mpirun, '--version'])}")
    print(f"- load when the benchmark began: {before:.2f}")
    print(f"- inputs: {what}, the base and {len(family.tuned)} models, {family.bytes / 1e9:.2f} GB, in the page cache")
    print(flush=True)


def speed_table(bench, sync):
    mergekit = bench.options.mergekit and not sync
    kind = "tmpfs" if bench.place.tmpfs else "disk"
    rows = []
    for method in bench.options.methods:
        floor, merge, peer = bench.speed(method, sync, mergekit)
        row = [method, spread(floor), spread(merge), f"{statistics.median(merge) / statistics.median(floor):.2f}",
               spread([m / f for m, f in zip(merge, floor)])]
        if mergekit:
            row += [f"{peer:.1f}", f"{peer / statistics.median(merge):.1f}"]
        rows.append(row)
    print(f"Seconds, median (least–most) of {bench.options.runs} runs in turn, {bench.options.ranks} ranks, bfloat16 "
          f"output on {kind}{', with fdatasync' if sync else ''}:\n")
    header = ["method", "floor", "nps-merge", "ratio of medians", "ratios of pairs"]
    table(header + (["mergekit, one run", "mergekit ÷ nps-merge"] if mergekit else []), rows)


def memory_table(bench):
    rows = []
    for method in bench.options.methods:
        for limit in MEMORY_LIMITS:
            for ranks in MEMORY_RANKS:
                peaks, memory, seconds, predicted = bench.memory(method, ranks, limit)
                rows.append([method, limit, str(ranks), ", ".join(f"{p / (1 << 20):.0f}" for p in peaks),
                             f"{memory / (1 << 20):.0f}", f"{memory / peaks[0]:.2f}",
                             f"{seconds:.2f}", f"{predicted:.2f}", f"{predicted / seconds:.2f}"])
    print(f"Private memory (RssAnon + RssShmem, a look every {SAMPLE_SECONDS * 1000:.0f} ms) and time of one run, "
          "beside what `--plan` predicts:\n")
    table(["method", "memory_per_rank", "ranks", "peak of each rank, MiB", "predicted peak, MiB",
           "predicted ÷ measured", "seconds", "predicted seconds", "predicted ÷ measured"], rows)


# ---- Command line ----------------------------------------------------------------------------------------------------


def method_list(text):
    methods = text.split(",")
    for method in methods:
        if method not in METHODS:
            raise argparse.ArgumentTypeError(f"{method!r} is none of {', '.join(METHODS)}")
    return methods


def parse():
    p = argparse.ArgumentParser(description="Measure nps-merge beside the floor.")
    p.add_argument("--shape", default="1b", choices=make_checkpoints.SHAPES)
    p.add_argument("--models", type=int, default=3, help="fine-tuned models beside the base (default %(default)s)")
    p.add_argument("--dir", default=os.path.join(os.environ.get("TMPDIR") or "/tmp", "nps-bench"),
                   help="where checkpoints are made once and kept (default %(default)s)")
    p.add_argument("--family", metavar="FOLDER", help="use the models base, tuned-1 … of this folder instead")
    p.add_argument("--out-dir", default="/dev/shm/nps-bench-out", help="where outputs go (default %(default)s)")
    p.add_argument("--methods", type=method_list, default=list(USUAL),
                   help="some of " + ",".join(METHODS) + "; without it " + ",".join(USUAL))
    p.add_argument("--ranks", type=int, default=2, help="of nps-merge and of the floor (default %(default)s)")
    p.add_argument("--runs", type=int, default=3, help="of each; 0 leaves times out (default %(default)s)")
    p.add_argument("--sync", nargs="?", const="", metavar="FOLDER",
                   help="also to a disk, with fdatasync (default: a folder in --dir)")
    p.add_argument("--mergekit", action="store_true", help="also mergekit, once a method: ties takes minutes")
    p.add_argument("--memory", action="store_true", help="also memory and time beside the plan's predictions")
    options = p.parse_args()
    if min(options.models, options.ranks) < 1 or options.runs < 0:
        p.error("--models and --ranks are at least 1, --runs at least 0")
    if options.sync == "":
        options.sync = os.path.join(options.dir, "out")
    if options.sync and is_tmpfs(options.sync):
        p.error(f"--sync: {options.sync} lies in memory, name a folder on a disk")
    return options


def in_place(folder, options, tools, family, measure):
    place = Workplace(folder)
    try:
        measure(Bench(options, tools, family, place))
    finally:
        place.remove()


def main():
    before = os.getloadavg()[0]
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        tools = Tools(options)
        family = Family(options)
        print_facts(options, tools, family, before)
        if options.runs > 0:
            in_place(options.out_dir, options, tools, family, lambda bench: speed_table(bench, False))
        if options.runs > 0 and options.sync:
            in_place(options.sync, options, tools, family, lambda bench: speed_table(bench, True))
        if options.memory:
            in_place(options.out_dir, options, tools, family, memory_table)
    except (BenchError, OSError) as error:
        sys.exit(f"bench.py: {error}")
    except KeyboardInterrupt:
        sys.exit("bench.py: interrupted")


if __name__ == "__main__":
    main()
