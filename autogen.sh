#!/bin/sh
# Make ./configure from configure.ac. Needs autoconf and automake.
set -e
cd "$(dirname "$0")"
command -v autoreconf >/dev/null || {
  echo "autogen.sh: autoreconf not found (Debian: apt-get install autoconf automake)" >&2
  exit 1
}
mkdir -p build-aux
exec autoreconf --install --warnings=all,no-portability "$@"
