#!/bin/sh
# Run one test program for `make check`: run-one.sh RANKS PROGRAM. RANKS 0: without mpirun.
# MPI tests wait for each other, as several mpiruns at once would share the cores; each has a time limit. Ranks other
# than 0 write to stderr, which goes to the log: stdout carries one TAP stream.
ranks=$1 program=$2
limit=${NPS_TEST_LIMIT:-180}

if test "$ranks" = --rank; then # started below, once a rank
  test "${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-${SLURM_PROCID:-0}}}}" = 0 || exec >&2
  exec "$program"
fi

case $program in */*) ;; *) program=./$program ;; esac
test "$ranks" -gt 0 || exec timeout -k 10 "$limit" "$program" </dev/null

MPIEXEC_TIMEOUT=$limit
export MPIEXEC_TIMEOUT
set -- timeout -k 10 "$((limit + 10))" ${MPIRUN:-mpirun} -n "$ranks" /bin/sh "$0" --rank "$program"
if command -v flock >/dev/null; then
  exec flock --close "${NPS_BUILDDIR:-.}/tests/mpi.lock" "$@" </dev/null
fi
exec "$@" </dev/null
