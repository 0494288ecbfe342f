#!/bin/sh
# Make the Python virtual environment of the tests, once, outside the tree. --path: only print where it lies.
# NPS_TEST_VENV names another place. A marker written last, which holds the sums of both lists of packages, tells a
# complete environment from a half-made or outdated one.
set -e
cd "$(dirname "$0")"
sums=$(cat requirements.txt requirements-nodeps.txt | sha256sum | cut -c 1-64)
name=venv-$(sha256sum requirements.txt | cut -c 1-12)
venv=${NPS_TEST_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/nps-merge/$name}
if test "$1" = --path; then
  echo "$venv"
  exit
fi

complete() { test "$(cat "$venv/.complete" 2>/dev/null)" = "$sums"; }
complete && exit

make_venv() {
  complete && return
  echo "making the tests' Python environment in $venv"
  if test -e "$venv" && ! test -e "$venv/pyvenv.cfg"; then
    echo "venv.sh: $venv exists and is no virtual environment" >&2
    return 1
  fi
  python3 -m venv --clear "$venv" &&
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r requirements.txt &&
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
      -r requirements-nodeps.txt &&
    echo "$sums" >"$venv/.complete"
}

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9
make_venv 9>&- </dev/null
