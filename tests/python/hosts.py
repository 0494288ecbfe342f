"""Several hosts on one machine, for the tests: network namespaces with an address each, joined by a bridge, with a host name,
a /tmp and a /dev/shm of their own. All of them live in namespaces of the process that is run, and end with it."""

import os
import shlex
import shutil
import subprocess

import tools

# The machine that mpirun runs on is $NET.254, host i $NET.i; a host's folder for MPI's files is its own /dev/shm.
NET = "10.77.0"

SETUP = """
set -e
mount -t tmpfs none /run
ip link set lo up
ip link add switch type bridge
ip addr add {net}.254/24 dev switch
ip link set switch up
for i in {numbers}; do
  ip netns add host$i
  ip link add to$i type veth peer name eth netns host$i
  ip link set to$i master switch up
  ip -n host$i addr add {net}.$i/24 dev eth
  ip -n host$i link set eth up
  ip -n host$i link set lo up
done
exec "$@"
"""

# mpirun calls this as it would call ssh: AGENT HOST COMMAND…
AGENT = """#!/bin/sh
number=${1##*.}
shift
exec ip netns exec "host$number" unshare --uts --ipc sh -c "hostname host$number && mount -t tmpfs none /dev/shm && $*"
"""


def namespaces():
    """The words that start a program in namespaces of its own: as root, or as a user who may have them."""
    tried = []
    for more in ([], ["--map-root-user"]):
        words = ["unshare", "--net", "--mount", "--uts", *more]
        trial = subprocess.run([*words, "sh", "-c", "ip link add switch type bridge && mount -t tmpfs none /run && ip netns add a"],
                               capture_output=True, text=True)  # fmt: skip
        if trial.returncode == 0:
            return words
        tried.append(trial.stderr)
    raise AssertionError(f"no network namespaces: neither by this user nor in one of its own: {tried}")


def run(folder, program, *arguments, hosts=2, ranks_each=1, env=None, limit=tools.TIME_LIMIT):
    """Run a program on several hosts, ranks over TCP only."""
    agent = folder / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    numbers = range(1, hosts + 1)
    mpirun = shutil.which(os.environ.get("MPIRUN") or "mpirun")
    words = [mpirun, "--host", ",".join(f"{NET}.{i}:{ranks_each}" for i in numbers), "--mca", "plm_rsh_agent", agent,
             "--mca", "btl", "self,tcp", "--mca", "orte_tmpdir_base", "/dev/shm", "-x", "TMPDIR=/dev/shm",
             program, *arguments]  # fmt: skip
    setup = SETUP.format(net=NET, numbers=" ".join(map(str, numbers)))
    return tools.run(*namespaces(), "sh", "-c", setup, "sh", *map(str, words), limit=limit, env=env)
