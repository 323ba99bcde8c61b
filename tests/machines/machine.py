"""One virtual machine: boots a kernel, runs one command in this machine's root, and is gone.

The emulator is qemu without KVM: where this machine is itself a virtual one, KVM may exist and
hang. What the command prints and its status come back through a folder that both see; changes to
the root stay in the machine's memory.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.machines.initramfs import initramfs
from tests.machines.packages import Kernel, MachineError

# The guest's own first process. Each line of `mount` is one that a booted Debian has.
GUEST = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing
mount -t securityfs security /sys/kernel/security 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mkdir -p "/lib/modules/$(uname -r)"
mount --bind {modules} "/lib/modules/$(uname -r)"
hostname machine
ip link set lo up
sysctl -qw kernel.panic_on_oops=1
{environment}
cd {folder}
echo "machine: $(uname -r) is up after $(cut -d' ' -f1 /proc/uptime) s" >/dev/console
{command} >/run/results/output 2>&1 </dev/null
echo $? >/run/results/status
dmesg >/run/results/dmesg
sync
echo o >/proc/sysrq-trigger
sleep 60
"""

PROCESSORS = {
    "amd64": ("qemu-system-x86_64", "-machine", "q35", "-cpu", "max"),
    "arm64": ("qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a72"),
}
CONSOLES = {"amd64": "ttyS0", "arm64": "ttyAMA0"}


@dataclass(frozen=True)
class Result:
    """How a command ended in a machine."""

    status: int
    output: str
    seconds: float
    console: str


@dataclass(frozen=True)
class Machine:
    """A virtual machine of a kernel; nothing runs until `run`.

    Args:
        kernel: what it boots.
        root: the folder that is its root, read-only.
        architecture: Debian's name of the processor.
        memory: in MiB; the root's changes and /tmp are in it, too.
        processors: how many virtual ones.
        busybox: a program that needs no libraries, for this architecture; this machine's own
            where none is named.

    """

    kernel: Kernel
    root: Path = Path("/")
    architecture: str = "amd64"
    memory: int = 3072
    processors: int = 2
    busybox: Path | None = None

    def run(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        results: Path,
        environment: Mapping[str, str] | None = None,
        timeout: float,
        devices: Sequence[str] = (),
    ) -> Result:
        """Boot, run a command, and return how it ended.

        Args:
            command: what runs as root; its paths are the root's.
            folder: where it runs.
            results: a folder that the machine sees as /run/results and may write to.
            environment: variables for the command.
            timeout: seconds until the machine is ended.
            devices: more words for qemu.

        Raises:
            MachineError: qemu is missing, the machine did not come up, or did not end in time.

        """
        emulator = PROCESSORS[self.architecture]
        if shutil.which(emulator[0]) is None:
            raise MachineError(f"{emulator[0]} is not there: install the package qemu-system")
        results.mkdir(parents=True, exist_ok=True)
        for name in ("output", "status", "dmesg"):
            (results / name).unlink(missing_ok=True)
        variables = [f"export {k}={shlex.quote(v)}" for k, v in (environment or {}).items()]
        script = GUEST.format(
            modules=shlex.quote(str(self._inside(self.kernel.modules))),
            environment="\n".join(variables),
            folder=shlex.quote(str(folder)),
            command=shlex.join(command),
        )
        (results / "guest.sh").write_text(script, encoding="utf-8")
        console = results / "console"
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="sockway-machine-") as scratch:
            archive = Path(scratch) / "initramfs"
            archive.write_bytes(initramfs(self.kernel, self.busybox))
            self._boot([*emulator, *self._words(archive, results), *devices], console, timeout)
        seconds = time.monotonic() - began
        status = results / "status"
        said = console.read_text(encoding="utf-8", errors="replace")
        if not status.exists():
            tail = "\n".join(said.strip().splitlines()[-15:])
            raise MachineError(
                f"{self.kernel.release}: no status after {seconds:.0f} s; its console ends:\n{tail}"
            )
        output = (results / "output").read_text(encoding="utf-8", errors="replace")
        return Result(int(status.read_text(encoding="ascii")), output, seconds, said)

    def _inside(self, path: Path) -> Path:
        """Return the path that a file of this machine has in the guest."""
        return Path("/") / path.absolute().relative_to(self.root.absolute())

    def _words(self, archive: Path, results: Path) -> list[str]:
        share = "security_model=none,multidevs=remap"
        quiet = "loglevel=4" if self.architecture == "amd64" else "loglevel=5"
        return [
            "-accel", "tcg,thread=multi",
            "-smp", str(self.processors), "-m", str(self.memory),
            "-kernel", str(self.kernel.image), "-initrd", str(archive),
            "-append", f"console={CONSOLES[self.architecture]} panic=-1 {quiet} mitigations=off",
            "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
            "-object", "rng-random,id=random,filename=/dev/urandom",
            "-device", "virtio-rng-pci,rng=random",
            "-virtfs", f"local,path={self.root},mount_tag=root,readonly=on,{share}",
            "-virtfs", f"local,path={results},mount_tag=results,{share}",
        ]  # fmt: skip

    def _boot(self, words: list[str], console: Path, timeout: float) -> None:
        with console.open("wb") as said:
            machine = subprocess.Popen(
                # It ends with the thread that waits for it: one that nobody waits for is none.
                ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "5", *words],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _running.add(machine)
        try:
            machine.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise MachineError(
                f"{self.kernel.release} did not end within {timeout:.0f} s; see {console}"
            ) from error
        finally:
            _running.discard(machine)
            _kill(machine)


_running: set[subprocess.Popen[bytes]] = set()


def end_all() -> None:
    """End every machine that this process runs; those who wait for one learn that it ended."""
    for machine in list(_running):
        _kill(machine)


def _kill(machine: subprocess.Popen[bytes]) -> None:
    if machine.poll() is None:
        os.killpg(machine.pid, signal.SIGKILL)
        machine.wait()
