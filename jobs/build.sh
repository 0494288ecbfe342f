#!/bin/sh
# Configure where that was not done yet, and make: build.sh FOLDER [CONFIGURE-ARGUMENT…]
set -e
case $1 in /*) folder=$1 ;; *) folder=$PWD/$1 ;; esac
shift
root=$(cd "$(dirname "$0")/.." && pwd)
test -x "$root/configure" || "$root/autogen.sh"
mkdir -p "$folder"
cd "$folder"
test -e Makefile || "$root/configure" "$@"
exec make -j "$(nproc 2>/dev/null || echo 2)"
