"""Kernels from Debian's packages: found, fetched and unpacked, never installed.

apt works in a root of its own here, so that the machine's package lists, sources and keys stay
as they are. It asks the mirror that the machine is set up for, and other suites of it: 6.1 is in
one, 6.12 in the next, the newest kernel in the backports.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Stable releases and their backports, the oldest first. A suite that the mirror has
# no more is left out by apt with a warning.
SUITES = ("bookworm", "trixie", "trixie-backports")
SECURITY = ("bookworm-security", "trixie-security")
NEWEST = "newest"
_VERSION = re.compile(r"\d+(?:\.\d+)+")


class MachineError(Exception):
    """A virtual machine can't be had; the message says why, and what to do."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that was unpacked: its release (what `uname -r` says) and where it lies."""

    release: str
    root: Path

    @property
    def image(self) -> Path:
        """The file that a machine boots: beside the modules since Linux 7."""
        beside = self.modules / "vmlinuz"
        return beside if beside.exists() else self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """The folder that is `/lib/modules/RELEASE` in the machine."""
        return self.root / "lib" / "modules" / self.release


def _run(*command: str, where: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=where, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise MachineError(
            f"{command[0]} is not there: kernels come from Debian's packages, by apt and dpkg"
        ) from error
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout).strip().splitlines()
        raise MachineError(f"{' '.join(command)}: {words[-1] if words else error}") from error
    return done.stdout


class Packages:
    """Debian's packages for one architecture, through an apt root of their own."""

    def __init__(self, folder: Path, architecture: str = "amd64") -> None:
        """Use `folder` for lists, downloads and unpacked kernels; it is made when missing."""
        self._folder = folder / architecture
        self._architecture = architecture

    def _apt(self, tool: str, *words: str, where: Path | None = None) -> str:
        root = self._folder / "apt"
        options = {
            "Dir": root,
            "Dir::State::status": root / "status",
            "Dir::Etc::sourcelist": root / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "APT::Get::List-Cleanup": "false",
        }
        settings = [f"-o{name}={value}" for name, value in options.items()]
        return _run(tool, "-qq", *settings, *words, where=where)

    def _lists(self) -> None:
        root = self._folder / "apt"
        if (root / "ready").exists():
            return
        for part in ("etc/apt/preferences.d", "var/lib/apt/lists/partial", "var/cache/apt"):
            (root / part).mkdir(parents=True, exist_ok=True)
        (root / "status").touch()
        sites = _run(
            "apt-get", "indextargets", "--format", "$(SITE)\t$(RELEASE)", "Created-By: Packages"
        )
        known = [line.split("\t") for line in sites.splitlines()]
        main = next((site for site, suite in known if "/debian" in site and "-" not in suite), None)
        if main is None:
            raise MachineError("apt here has no Debian mirror: kernels come from Debian's packages")
        security = next((site for site, suite in known if suite.endswith("-security")), None)
        lines = [
            f"deb [signed-by={KEYS}] {site} {suite} main"
            for site, suites in ((main, SUITES), (security, SECURITY))
            if site
            for suite in suites
        ]
        (root / "sources.list").write_text("\n".join(lines) + "\n", encoding="ascii")
        self._apt("apt-get", "update")
        (root / "ready").touch()

    def find(self, wanted: str) -> str:
        """Return the release of the newest stock kernel whose version begins with `wanted`.

        Raises:
            MachineError: there is none, or the packages can't be asked.

        """
        self._lists()
        flavour = re.compile(rf"linux-image-(\d[^-]*(?:-\d+)?-{re.escape(self._architecture)})")
        names = self._apt("apt-cache", "pkgnames", "linux-image-").splitlines()
        releases = [found[1] for name in names if (found := flavour.fullmatch(name))]
        if wanted in releases:
            return wanted
        numbers = () if wanted == NEWEST else _numbers(wanted)
        matching = [r for r in releases if _numbers(r)[: len(numbers)] == numbers]
        if not matching:
            known = sorted({".".join(map(str, _numbers(r)[:2])) for r in releases})
            raise MachineError(f"no kernel {wanted} in Debian's packages; there are {known}")
        return max(matching, key=_numbers)

    def kernel(self, wanted: str) -> Kernel:
        """Fetch and unpack a kernel; return it. What was unpacked before is taken.

        Raises:
            MachineError: it can't be had; the message says why.

        """
        release = self.find(wanted)
        kernel = Kernel(release, self._folder / release)
        if kernel.image.exists() and (kernel.modules / "modules.dep").exists():
            return kernel
        fresh = kernel.root.with_name(f".{release}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        # Newer kernels are split over several packages of the same release.
        known = set(self._apt("apt-cache", "pkgnames", "linux-").splitlines())
        parts = [f"linux-{part}-{release}" for part in ("image", "binary", "modules", "base")]
        for name in [part for part in parts if part in known]:
            self._apt("apt-get", "download", name, where=fresh)
        for package in fresh.glob("*.deb"):
            _run("dpkg", "-x", str(package), str(fresh))
            package.unlink()
        if not (fresh / "lib").exists() and (fresh / "usr" / "lib").exists():
            (fresh / "lib").symlink_to("usr/lib")
        _run("depmod", "-b", str(fresh), release)
        shutil.rmtree(kernel.root, ignore_errors=True)
        fresh.rename(kernel.root)
        if not kernel.image.exists():
            raise MachineError(f"the packages of {release} have no {kernel.image.name}")
        return kernel

    def root(self, names: Sequence[str]) -> Path:
        """Unpack these packages and all that they depend on; return the folder.

        Nothing of them runs: no scripts, so no alternatives, no users, no cache of libraries. What
        was unpacked for the same names before is taken.

        Raises:
            MachineError: one can't be had; the message says why.

        """
        self._lists()
        root, wanted = self._folder / "root", "\n".join(names)
        done = root / "etc" / "packages"
        if done.exists() and done.read_text(encoding="ascii") == wanted:
            return root
        shutil.rmtree(root, ignore_errors=True)
        self._apt("apt-get", "install", "--download-only", "--no-install-recommends", "-y", *names)
        root.mkdir(parents=True)
        archives = self._folder / "apt" / "var" / "cache" / "apt" / "archives"
        # The one with /bin -> usr/bin comes first: the others unpack through these links.
        first = f"base-files_*_{self._architecture}.deb"
        packages = [*archives.glob(first), *sorted(archives.glob("*.deb"))]
        for package in dict.fromkeys(packages):
            _run("dpkg", "-x", str(package), str(root))
        (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="ascii")
        (root / "etc" / "group").write_text("root:x:0:\n", encoding="ascii")
        shutil.rmtree(archives)
        done.write_text(wanted, encoding="ascii")
        return root


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"[\d.]+(?:-\d+)?", version)
    return tuple(int(n) for n in re.findall(r"\d+", found[0])) if found else ()
