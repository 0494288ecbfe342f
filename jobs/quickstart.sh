#!/bin/sh
# From a fresh checkout to a merged model: install what is missing, build in build/quickstart, search how eight small
# vision transformers are best merged into one, on 4 ranks, and show what came out.
set -e
exec </dev/null
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/quickstart
models=$root/examples/models/digits-vit
merged=$root/build/digits-vit-merged.h5
ranks=4

"$root/jobs/install-deps.sh"

echo "building in $build"
mkdir -p "$build"
if ! "$root/jobs/build.sh" "$build" --disable-tests >"$build/build.log" 2>&1; then
  tail -n 40 "$build/build.log"
  echo "quickstart.sh: the build failed, all of its output is in $build/build.log" >&2
  exit 1
fi

# Open MPI refuses to run as root, and more ranks than cores, unless told otherwise.
if test "$(id -u)" = 0; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
if test "$(nproc)" -lt $ranks; then
  export OMPI_MCA_rmaps_base_oversubscribe=1
fi
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}

set -- "$root/configs/digits-vit-nps.yaml" "$merged" --force
echo "mpirun -np $ranks nps-merge $*"
timeout -k 10 600 "${MPIRUN:-mpirun}" -np $ranks "$build/nps-merge" "$@"
echo
echo "nps-inspect $merged --against $models/base"
"$build/nps-inspect" "$merged" --against "$models/base" >"$build/inspect.log"
# The first rows of its table, and the line of totals.
awk '/^tensor /{rows = 12} rows-- > 0' "$build/inspect.log"
echo "… (all tensors: $build/inspect.log)"
tail -n 1 "$build/inspect.log"
echo
echo "The merged model is $merged"
