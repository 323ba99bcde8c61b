#!/usr/bin/env bash
# Makes the virtual environment $1 (absolute or relative path) with everything that
# `make lint test demo bench` need, and installs what is missing of the system.
# Needs python3 (3.11 or later) and make; on Debian it gets the rest by itself.
# Further arguments are programs that the tests want too, each COMMAND:PACKAGE; with
# them, only these are seen to.
set -euo pipefail

venv=$1
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

say() { printf 'bootstrap: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root to run: $* (or install these packages yourself)"
    fi
}

# Services must not start because their package was installed for its binary:
# policy-rc.d is how Debian lets an administrator say so.
apt_install() {
    local policy=/usr/sbin/policy-rc.d made=no status=0
    say "installing $*"
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
        made=yes
    fi
    as_root apt-get update -qq || status=$?
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        --no-install-recommends "$@" >/dev/null || status=$?
    if [ $made = yes ]; then as_root rm -f $policy; fi
    return $status
}

missing=()
if [ $# -gt 1 ]; then
    for wanted in "${@:2}"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${wanted%%:*}" >/dev/null ||
            missing+=("${wanted#*:}")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        command -v apt-get >/dev/null || die "please install: ${missing[*]}"
        apt_install "${missing[@]}" || die "could not install: ${missing[*]}"
    fi
    exit
fi
command -v "$python" >/dev/null || die "no $python: install Python 3.11 or later, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" -V) is too old: Sockway needs Python 3.11 or later (set PYTHON to one)"
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
"$python" -c 'import ctypes; ctypes.CDLL("libbpf.so.1")' 2>/dev/null || missing+=(libbpf1)
PATH=$PATH:/usr/sbin:/sbin command -v ip >/dev/null || missing+=(iproute2)
# A test has it read what stamps look like.
PATH=$PATH:/usr/sbin:/sbin command -v tshark >/dev/null || missing+=(tshark)
# A test renders the manual pages.
PATH=$PATH:/usr/sbin:/sbin command -v groff >/dev/null || missing+=(groff)
had_nginx=yes
PATH=$PATH:/usr/sbin:/sbin command -v nginx >/dev/null || {
    had_nginx=no
    missing+=(nginx)
}

if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    apt_install "${missing[@]}" || die "could not install: ${missing[*]}"
    # Installed for the demo's sake, so it shall not start with the machine either.
    if [ $had_nginx = no ] && command -v systemctl >/dev/null; then
        as_root systemctl disable -q nginx 2>/dev/null || true
    fi
fi

if [ ! -x "$venv/bin/python" ]; then
    say "making $venv with $("$python" -V)"
    "$python" -m venv "$venv"
fi

# The build's own requirements first, so that the wheel is built without a
# second copy of the 100 MB compiler in an isolated environment.
mapfile -t build < <("$venv/bin/python" "$root/scripts/requirements.py" build)
"$venv/bin/python" -m pip install -qq "${build[@]}"
mapfile -t all < <("$venv/bin/python" "$root/scripts/requirements.py" dev)
say "installing ${#all[@]} requirements into $venv"
"$venv/bin/python" -m pip install -qq "${all[@]}"
