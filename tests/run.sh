#!/bin/sh
# Set up whatever is missing, build in build/tests and run the tests: tests/run.sh [--quick|--full]. --quick (default)
# is what CI runs; --full adds the pytest tests marked `full`. One line a part, then "N passed, N failed"; a part that
# could not run counts as one failed test. Exit code 0 only when nothing failed and nothing was skipped.
case ${1:---quick} in
--quick) select='not full' pytest_limit=3600 ;;
--full) select='' pytest_limit=10800 ;;
*)
  echo "usage: tests/run.sh [--quick|--full]" >&2
  exit 2
  ;;
esac
exec </dev/null
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/tests
logs=$build/logs
cores=$(nproc 2>/dev/null || echo 2)
passed=0 failed=0 skipped=0
mkdir -p "$logs" || exit 1
cd "$root" || exit 1

# step NAME LIMIT COMMAND…: run with a time limit in seconds; the output goes to $logs/NAME.log.
step() {
  log=$logs/$1.log limit=$2 name=$1 started=$(date +%s)
  shift 2
  timeout -k 30 "$limit" "$@" >"$log" 2>&1
  code=$?
  seconds=$(($(date +%s) - started))
  test $code = 124 && echo "$name: stopped after $limit s" >>"$log"
  return $code
}

show() { # the end of a log
  echo "---- $1"
  tail -n "${2:-60}" "$1"
  echo "----"
}

finish() {
  echo
  if test $skipped -gt 0; then
    echo "$passed passed, $failed failed, $skipped skipped"
  else
    echo "$passed passed, $failed failed"
  fi
  test $failed = 0 && test $skipped = 0 && exit 0
  exit 1
}

# try NAME LIMIT COMMAND…: a step whose failure counts.
try() {
  step "$@" && echo "$name: done ($seconds s)" && return
  show "$log"
  echo "$name: failed, exit code $code ($seconds s)"
  failed=$((failed + 1))
}

# must NAME LIMIT COMMAND…: a step without which nothing after it can run.
must() {
  try "$@"
  test $failed = 0 || finish
}

# count PART PASSED FAILED SKIPPED: print the line of a part and add to the totals.
count() {
  echo "$1: $2 passed, $3 failed, $4 skipped ($seconds s)"
  passed=$((passed + $2)) failed=$((failed + $3)) skipped=$((skipped + $4))
}

tap_total() { sed -n "s/^# $1: *//p" "$2/test-suite.log" 2>/dev/null | head -n 1; }

# check_in PART FOLDER: make check there, counted by TAP points.
check_in() {
  rm -f "$2/test-suite.log"
  step "$1" 1200 make -C "$2" -j "$cores" check
  total=$(tap_total TOTAL "$2")
  bad=$(($(tap_total FAIL "$2") + $(tap_total ERROR "$2") + $(tap_total XPASS "$2") + 0))
  if test $code != 0; then
    test "$bad" -gt 0 && show "$2/test-suite.log" 300 || show "$log"
    test "$bad" -gt 0 || bad=1
  fi
  count "$1" "$(($(tap_total PASS "$2") + 0))" $bad "$(($(tap_total SKIP "$2") + 0))"
  test "${total:-0}" -gt 0 || echo "$1: no test was run"
}

run_pytest() {
  rm -f "$logs/pytest.xml"
  step pytest "$pytest_limit" "$venv/bin/python" -m pytest -q -ra -c tests/pytest.ini --rootdir tests tests/python \
    --junitxml "$logs/pytest.xml" ${select:+-m "$select"}
  totals=$("$venv/bin/python" - "$logs/pytest.xml" <<'END'
import sys, xml.etree.ElementTree as tree
suite = tree.parse(sys.argv[1]).getroot().find("testsuite")
n = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
bad = n["failures"] + n["errors"]
print(n["tests"] - bad - n["skipped"], bad, n["skipped"])
END
  ) || totals="0 1 0"
  set -- $totals
  test $code = 0 || show "$log" 300
  test $code != 0 && test "$2" = 0 && set -- "$1" 1 "$3"
  test "$3" = 0 || grep '^SKIPPED' "$log"
  count pytest "$1" "$2" "$3"
}

# Root and more ranks than cores are fine in tests; one BLAS thread a rank; nothing is downloaded by tests.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
export NPS_SRCDIR="$root" NPS_BUILDDIR="$build"

must packages 2700 jobs/install-deps.sh --tests
must python 2400 tests/venv.sh
venv=$(tests/venv.sh --path)
must build 1200 jobs/build.sh "$build" --enable-werror
must build-sanitizers 1200 jobs/build.sh "$build-sanitizers" --enable-werror --enable-sanitizers CFLAGS='-O1 -g'
check_in check "$build"
check_in check-sanitizers "$build-sanitizers"
try models 900 "$venv/bin/python" tests/models/minilm_fetch.py
run_pytest
finish
