"""A Slurm cluster of several emulated nodes on this machine, for the tests: its own controller, node daemons, key, ports
and files in one folder. Nothing of the machine's own Slurm is read or touched."""

import os
import pathlib
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import tools

NODES = 4
COMMAND_LIMIT = 30
START_LIMIT = 60

CONF = """
ClusterName=nps{tag}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
KillWait=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
TmpFS={folder}/tmp.%n
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def free_ports(count):
    """Ports in a row that nobody listens on, below those that systems give to outgoing connections."""
    for _ in range(200):
        first = random.randrange(12000, 30000)
        taken = []
        try:
            for port in range(first, first + count):
                taken.append(socket.socket())
                taken[-1].bind(("", port))
            return list(range(first, first + count))
        except OSError:
            pass
        finally:
            for one in taken:
                one.close()
    raise AssertionError("no free ports")


def find(program):
    found = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin:/usr/local/sbin")
    assert found, f"{program} is not installed (jobs/install-deps.sh --tests installs it)"
    return found


class Slurm:
    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="nps-slurm-", dir="/tmp"))  # a socket's path is short
        self.daemons = []
        self.conf = self.folder / "slurm.conf"
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self):
        ports = free_ports(NODES + 1)
        host = socket.gethostname().split(".")[0]
        text = CONF.format(tag=ports[0], host=host, user=pwd.getpwuid(os.geteuid()).pw_name, controller=ports[0],
                           folder=self.folder)  # fmt: skip
        for k in range(NODES):
            text += (f"NodeName=n{k + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[k + 1]} CPUs=2 "
                     "RealMemory=5000 State=UNKNOWN\n")  # fmt: skip
            (self.folder / f"spool.n{k + 1}").mkdir()
            (self.folder / f"tmp.n{k + 1}").mkdir()
        (self.folder / "state").mkdir()
        self.conf.write_text(text)
        munge = self.folder / "munge"
        munge.mkdir(mode=0o711)
        (munge / "key").touch(mode=0o600)
        (munge / "key").write_bytes(os.urandom(1024))
        self._daemon("munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
                     f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed")  # fmt: skip
        assert tools.wait_for((munge / "socket").exists, START_LIMIT), self.logs()
        self._daemon("slurmctld", "-D", "-f", self.conf)
        for k in range(NODES):
            self._daemon("slurmd", "-D", "-f", self.conf, "-N", f"n{k + 1}")
        assert tools.wait_for(lambda: self._idle() == NODES, START_LIMIT, 0.1), self.logs()

    def _daemon(self, program, *arguments):
        log = open(self.folder / f"{program}.{len(self.daemons)}.out", "w")
        self.daemons.append(
            subprocess.Popen([find(program), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=log,
                             stderr=subprocess.STDOUT, env=self.environment(), start_new_session=True)
        )  # fmt: skip
        log.close()

    def _idle(self):
        result = self.call("sinfo", "-h", "-o", "%D %t", check=False)
        return sum(int(line.split()[0]) for line in result.stdout.splitlines() if line.split()[1:] == ["idle"])

    def environment(self, extra=None):
        kept = {k: v for k, v in tools.environment(extra).items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.conf)}

    def call(self, *words, check=True, env=None, cwd=None):
        result = subprocess.run([find(words[0]), *map(str, words[1:])], stdin=subprocess.DEVNULL, capture_output=True,
                                text=True, timeout=COMMAND_LIMIT, env=self.environment(env), cwd=cwd)  # fmt: skip
        assert not check or result.returncode == 0, f"{words}: {result}"
        return result

    def submit(self, *words, env=None, cwd=None):
        """Submit a job. Returns its number."""
        return self.call("sbatch", "--parsable", *words, env=env, cwd=cwd).stdout.strip()

    def show(self, job):
        """What Slurm knows of a job; of an array, of each of its tasks."""
        text = self.call("scontrol", "-o", "show", "job", job).stdout
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines()]

    def wait(self, job, limit=90):
        """Wait until a job, or every task of an array, has ended. Returns what is known of each."""
        ended = lambda: all(one["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
                            for one in self.show(job))  # fmt: skip
        assert tools.wait_for(ended, limit, 0.2), f"job {job} does not end: {self.show(job)}\n{self.logs()}"
        return self.show(job)

    def logs(self):
        return "\n".join(f"---- {p.name}\n{p.read_text(errors='replace')[-2000:]}"
                         for p in sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.out")))  # fmt: skip

    def stop(self):
        """End jobs and daemons, the last started first, and remove everything."""
        if len(self.daemons) == NODES + 2:
            try:
                self.call("scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name, check=False)
                tools.wait_for(lambda: not self.call("squeue", "-h", check=False).stdout, 10, 0.1)
            except subprocess.TimeoutExpired:
                pass  # the daemons are ended all the same
        for how in (signal.SIGTERM, signal.SIGKILL):
            for daemon in reversed(self.daemons):
                if daemon.poll() is None:
                    daemon.send_signal(how)
            end = time.monotonic() + 5
            for daemon in self.daemons:
                try:
                    daemon.wait(max(0.1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass
        shutil.rmtree(self.folder, ignore_errors=True)
