#!/bin/sh
# Install the Debian packages that are missing: install-deps.sh [--tests]. Does nothing when nothing is missing, and
# nothing on a machine without apt (there configure tells what it does not find).
# As root, or through sudo where that asks no password; otherwise prints the command and exits with 1.
set -e
PATH=$PATH:/usr/sbin:/sbin

# What the build links against: package names. libopenblas-dev has LAPACK too.
packages="libopenmpi-dev libscalapack-openmpi-dev libhdf5-openmpi-dev libyaml-dev libjansson-dev libssl-dev zlib1g-dev
  libopenblas-dev libc6-dev"
# Programs, and the packages that have them.
programs="gcc:gcc make:make autoconf:autoconf automake:automake pkg-config:pkg-config mpicc:libopenmpi-dev
  mpirun:openmpi-bin xz:xz-utils"
if test "$1" = --tests; then
  packages="$packages check"
  # Tests run a Slurm of their own. The packages' daemons are not started here: without a slurm.conf they do not start.
  programs="$programs python3:python3 ip:iproute2 munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client
    groff:groff-base zsh:zsh"
fi

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "install-deps.sh: no apt here, nothing installed; configure tells what is missing"
  exit 0
fi

missing=
add() { case " $missing " in *" $1 "*) ;; *) missing="$missing $1" ;; esac; }
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || add "$package"
done
for program in $programs; do
  command -v "${program%%:*}" >/dev/null || add "${program#*:}"
done
if test "$1" = --tests; then
  python3 -c 'import venv, ensurepip' 2>/dev/null || add python3-venv
  test -e /etc/ssl/certs/ca-certificates.crt || add ca-certificates
fi
test -n "$missing" || exit 0

if test "$(id -u)" = 0; then
  as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root="sudo -n"
else
  echo "install-deps.sh: packages are missing and this user may not install them. Run:" >&2
  echo "  sudo apt-get update && sudo apt-get install$missing" >&2
  exit 1
fi

echo "installing$missing"
apt() {
  timeout -k 30 1200 $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null
}
apt update
apt install -y --no-install-recommends $missing
