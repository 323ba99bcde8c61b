"""Make a Debian package of the wheel and of what it requires.

The package is a virtual environment at /usr/lib/sockway on Debian's own Python, made by hand: pip
unpacks the wheels for the Python of the release that is named, which need not be this machine's.
Compiled modules fit one minor version of Python, so the package depends on that version alone.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from typer._completion_shared import get_completion_script

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
HOME = "usr/lib/sockway"
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/sockway",
    "zsh": "usr/share/zsh/vendor-completions/_sockway",
    "fish": "usr/share/fish/vendor_completions.d/sockway.fish",
}
CONTROL = """\
Package: sockway
Version: {version}
Section: net
Priority: optional
Architecture: {architecture}
Depends: python3 (>= {python}), python3 (<< {next}), libbpf1, iproute2
Maintainer: Sockway <sockway@localhost>
Installed-Size: {size}
Description: packet routing from XDP to the socket
 Keeps every connection on the server process that owns it across releases,
 and is an L4 load balancer in XDP before many hosts.
"""
# The maintainer scripts do by hand what debhelper's do, because debhelper skips templates, and
# deb-systemd-helper does not record the links of instances, which only the administrator enables.
# An upgrade stops nothing, a removal stops all instances, a purge removes their links.
POSTINST = """\
#!/bin/sh
set -e
# Compiled here and not at the first start, which would leave files that dpkg does not know.
if [ "$1" = configure ]; then /usr/bin/python3 -m compileall -q /usr/lib/sockway/lib || true; fi
# Units may have changed; running services stay, `systemctl reload` or `restart` is for the user.
if [ -d /run/systemd/system ]; then systemctl --system daemon-reload >/dev/null || true; fi
"""
PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    if [ -x /usr/bin/deb-systemd-invoke ]; then stop=deb-systemd-invoke; else stop=systemctl; fi
    # One call for each template: after a unit that policy denies, the rest would be skipped.
    for units in 'sockway@*.service' 'sockway-balancer@*.service'; do
        $stop stop "$units" >/dev/null || true
    done
fi
find /usr/lib/sockway -name __pycache__ -prune -exec rm -rf {} +
"""
POSTRM = """\
#!/bin/sh
set -e
# A removal keeps the links, as it keeps all settings: the next installation finds them again.
if [ "$1" = purge ] && [ -d /etc/systemd/system ]; then
    find /etc/systemd/system -mindepth 2 -maxdepth 2 -type l \\
        \\( -lname '*/sockway@.service' -o -lname '*/sockway-balancer@.service' \\) \\
        -printf '%h\\n' -delete | sort -u | xargs -r rmdir --ignore-fail-on-non-empty
fi
if [ -d /run/systemd/system ]; then systemctl --system daemon-reload >/dev/null || true; fi
"""
LAUNCHER = """\
#!/usr/lib/sockway/bin/python3 -P
import sys
from sockway.cli import main
sys.exit(main())
"""


def main() -> None:
    """Make the package that the command line asks for, and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--suite", choices=PYTHONS, default="bookworm", help="the release")
    parser.add_argument("--wheels", type=Path, required=True, help="where the built wheel is")
    parser.add_argument("--output", type=Path, required=True, help="where the package goes")
    options = parser.parse_args()
    python = PYTHONS[options.suite]
    (wheel,) = options.wheels.glob("sockway-*.whl")
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        tree.chmod(0o755)
        environment(tree, python, wheel)
        shared(tree)
        version = f"{metadata.version('sockway')}+py{python}"
        print(package(tree, options.output, version, python))


def environment(tree: Path, python: str, wheel: Path) -> None:
    """Put a virtual environment with the wheel and its requirements into the tree."""
    home = tree / HOME
    packages = home / "lib" / f"python{python}" / "site-packages"
    abi = f"cp{python.replace('.', '')}"
    platforms = [f"manylinux{tag}_{os.uname().machine}" for tag in ("2014", "_2_17", "_2_28")]
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target",
        str(packages), "--python-version", python, "--implementation", "cp", "--abi", abi,
        "--abi", "abi3", "--abi", "none", "--only-binary", ":all:", "--disable-pip-version-check",
    ]  # fmt: skip
    for platform in (*platforms, "any"):
        command += ["--platform", platform]
    subprocess.run([*command, str(wheel)], check=True)
    for extra in ("bin", "share"):  # scripts of an interpreter that is not there, and manuals
        shutil.rmtree(packages / extra, ignore_errors=True)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to("/usr/bin/python3")
    (home / "bin" / "python").symlink_to("python3")
    (home / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n"
    )
    launcher = home / "bin" / "sockway"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/sockway").symlink_to("../lib/sockway/bin/sockway")


def shared(tree: Path) -> None:
    """Put manual pages, completion, units and the licence into the tree."""
    manual = tree / "usr/share/man/man1"
    manual.mkdir(parents=True)
    for page in (ROOT / "docs" / "man").glob("*.1"):
        (manual / f"{page.name}.gz").write_bytes(gzip.compress(page.read_bytes(), mtime=0))
    for shell, place in COMPLETIONS.items():
        (tree / place).parent.mkdir(parents=True)
        script = get_completion_script(
            prog_name="sockway", complete_var="_SOCKWAY_COMPLETE", shell=shell
        )
        (tree / place).write_text(script + "\n")
    units = tree / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for unit in (ROOT / "packaging" / "systemd").iterdir():
        shutil.copyfile(unit, units / unit.name)
    document = tree / "usr/share/doc/sockway"
    document.mkdir(parents=True)
    shutil.copyfile(ROOT / "LICENSE", document / "copyright")


def package(tree: Path, output: Path, version: str, python: str) -> Path:
    """Make the package of the tree; return its path."""
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    major, minor = python.split(".")
    size = sum(path.lstat().st_size for path in tree.rglob("*")) >> 10
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        CONTROL.format(
            version=version, architecture=architecture, python=python, size=size,
            next=f"{major}.{int(minor) + 1}",
        )
    )  # fmt: skip
    for name, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        (control / name).write_text(text)
        (control / name).chmod(0o755)
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"sockway_{version}_{architecture}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(target)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return target


if __name__ == "__main__":
    main()
