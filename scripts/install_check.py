"""Install Sockway as users do, in fresh roots of Debian releases: `make install-check`.

For each release: the README's commands as they are typed, and the Debian package, installed, used
and purged. A root is made by debootstrap in a temporary directory and entered by chroot in a mount
namespace, so its mounts end with it. Needs root, debootstrap and the network, which the root shares
with this machine: resolver, certificates and pip's settings are copied into it, and programs in it
have this process's environment. apt has only the mirror that debootstrap wrote down.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (
    "/etc/resolv.conf", "/etc/pip.conf", "/root/.config/pip/pip.conf",
    "/etc/ssl/certs/ca-certificates.crt",
)  # fmt: skip
ENTER = """
set -e
mount -t proc proc "$0/proc"
mount -t sysfs sysfs "$0/sys"
mount -t bpf bpf "$0/sys/fs/bpf"
mount --rbind /dev "$0/dev"
mount -t tmpfs tmpfs "$0/run"
exec chroot "$0" bash -euc "$1"
"""
"""Run by `unshare --mount`: the root is $0, the script $1."""
PREPARE = "apt-get update -qq && apt-get install -y -qq man-db systemd >/dev/null"
DEB = """
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq /sockway.deb >/dev/null
sockway --version
sockway doctor
man -w sockway sockway-balancer
sockway --show-completion | grep complete || { echo "--show-completion prints nothing"; exit 1; }
grep -q _SOCKWAY_COMPLETE=complete_bash /usr/share/bash-completion/completions/sockway
_SOCKWAY_COMPLETE=complete_bash COMP_WORDS="sockway rel" COMP_CWORD=1 sockway | grep -x release ||
    { echo "bash completes no command"; exit 1; }
"""
PURGE = """
policy=/usr/sbin/policy-rc.d
printf '#!/bin/sh\\necho "$@" >>/run/asked\\nexit 101\\n' >$policy
chmod +x $policy
touch /run/asked
SYSTEMD_OFFLINE=1 systemctl enable sockway@web sockway-balancer@main
mkdir -p /run/systemd/system
wants=/etc/systemd/system/multi-user.target.wants
test -L $wants/sockway@web.service
test -L $wants/sockway-balancer@main.service
dpkg -i /sockway.deb
if [ -s /run/asked ]; then echo "an upgrade stops services:"; cat /run/asked; exit 1; fi
apt-get remove -y -qq sockway
for unit in 'sockway@*.service' 'sockway-balancer@*.service'; do
    grep -Fx "$unit stop" /run/asked || { echo "a removal does not stop $unit"; exit 1; }
done
test -L $wants/sockway@web.service
apt-get purge -y -qq sockway
rm $policy
"""
"""Upgrade, remove and purge the package with enabled units.

No systemd runs in the root, so Debian's policy-rc.d records what deb-systemd-invoke would do.
"""
LEFT = r"find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp \) -prune -o -print"
NOISE = re.compile(r"^/(var/(lib/(dpkg|apt)|cache|log)|etc/ld.so.cache|root/.cache)")


def main() -> None:
    """Check the releases that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suites", nargs="+", help="bookworm, trixie")
    for suite in parser.parse_args().suites:
        with tempfile.TemporaryDirectory(prefix="sockway-root-") as directory:
            check(suite, Path(directory) / suite)


def check(suite: str, root: Path) -> None:
    """Install both ways in a fresh root of a release; exit with 1 where something is wrong."""
    began = time.monotonic()
    say(suite, "makes a root")
    # debootstrap knows a mirror; who has a nearer one names it.
    mirror = [os.environ["MIRROR"]] if "MIRROR" in os.environ else []
    run(
        ["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, str(root), *mirror]
    )
    for setting in map(Path, SETTINGS):
        if setting.exists():
            target = root / setting.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(setting, target)
    # minbase leaves out manual pages of other packages, not ours; man-db has to be there. systemd
    # enables units without running.
    inside(root, PREPARE)
    deb(suite, root)
    readme(suite, root)
    say(suite, f"fine, in {time.monotonic() - began:.0f} s")


def deb(suite: str, root: Path) -> None:
    """Install the Debian package, use it, upgrade it, purge it; nothing may be left."""
    made = run(
        [sys.executable, "scripts/deb.py", "--suite", suite, "--wheels", "out/dist",
         "--output", "out"],
    ).splitlines()[-1]  # fmt: skip  # pip may warn before
    say(suite, f"installs {Path(made).name}")
    shutil.copyfile(ROOT / made, root / "sockway.deb")
    depends = run(["dpkg-deb", "--field", made, "Depends"])
    names = " ".join(re.findall(r"[a-z0-9]+", re.sub(r"\(.*?\)", "", depends)))
    inside(root, f"apt-get install -y -qq {names} >/dev/null")
    before = files(root)
    print(inside(root, DEB))
    if shutil.which("systemd-analyze"):
        units = [str(unit) for unit in (root / "usr/lib/systemd/system").glob("sockway*")]
        verify(root, units)
    inside(root, PURGE)
    left = sorted(files(root) - before)
    if left:
        sys.exit(f"{suite}: the purged package left {left[:20]}")


def verify(root: Path, units: list[str]) -> None:
    """Have systemd look at the units; it looks for their programs in the root."""
    names = [Path(unit).name.replace("@.", "@test.") for unit in units]
    run(
        ["systemd-analyze", "verify", f"--root={root}", "--man=no", "--recursive-errors=no", *names]
    )


def readme(suite: str, root: Path) -> None:
    """Type the README's commands for an installation, in a copy of the checkout."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## Use it\n.*?```sh\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    if block is None:
        sys.exit("the README has no commands below `Use it`")
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    for name in filter(None, listed.split("\0")):
        target = root / "root/sockway" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, target)
    say(suite, "types the README's commands")
    print(inside(root, f"cd /root/sockway\nset -x\n{block[1]}"))


def files(root: Path) -> set[str]:
    """Return the names of all files in the root that an installation could leave."""
    return {line for line in inside(root, LEFT).splitlines() if not NOISE.match(line)}


def inside(root: Path, script: str) -> str:
    """Run a script in the root; return what it printed."""
    return run(["unshare", "--mount", "bash", "-c", ENTER, str(root), script])


def run(command: list[str]) -> str:
    """Run a program; return what it printed, or exit with that where it fails."""
    done = subprocess.run(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(
            f"{' '.join(command[:4])} ... ended with {done.returncode}:\n{done.stdout[-4000:]}"
        )
    return done.stdout


def say(suite: str, text: str) -> None:
    """Tell what is done."""
    print(f"install-check: {suite}: {text}", flush=True)


if __name__ == "__main__":
    main()
