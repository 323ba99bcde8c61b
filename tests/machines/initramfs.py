"""The first files of a machine: busybox, the modules for its root, and a script that mounts it.

An initramfs is a cpio archive of the form "newc", which is simple enough to be written here:
a header of 110 octets in hexadecimal digits, the name, the content, each padded to four octets.
"""

from __future__ import annotations

import lzma
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.machines.packages import Kernel, MachineError

# What the root needs: 9p over virtio, an overlay in memory.
ROOT_MODULES = ("virtio_pci", "virtio_mmio", "9pnet_virtio", "9p", "overlay")

# The root of the machine is this machine's own, read-only, under an overlay in memory. Both
# shares are named by tags; the guest's own script lies in the second.
INIT = """#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for module in $(busybox cat /modules/order); do
    busybox insmod /modules/$module || echo "init: $module was refused"
done
options=trans=virtio,version=9p2000.L,msize=512000
busybox mount -t 9p -o $options,ro,cache=loose root /lower || busybox poweroff -f
busybox mount -t tmpfs -o size=75% upper /upper
busybox mkdir /upper/changes /upper/work
busybox mount -t overlay \
    -o lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work overlay /root ||
    busybox poweroff -f
busybox mkdir -p /root/proc /root/dev /root/sys /root/run /root/tmp
busybox mkdir -p /root/run/results
busybox mount -t tmpfs run /root/run
busybox mkdir -p /root/run/results
busybox mount -t 9p -o $options,cache=none results /root/run/results || busybox poweroff -f
busybox mount --move /dev /root/dev
busybox umount /proc
exec busybox switch_root /root /bin/sh /run/results/guest.sh
"""


def _entry(name: str, mode: int, content: bytes, number: int) -> Iterator[bytes]:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    yield header + encoded + bytes(-(len(header) + len(encoded)) % 4)
    yield content + bytes(-len(content) % 4)


def archive(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Pack (name, mode, content) as a cpio archive of the form that the kernel unpacks."""
    everything = [*files, ("TRAILER!!!", 0, b"")]
    return b"".join(
        part
        for number, (name, mode, content) in enumerate(everything)
        for part in _entry(name, mode, content, number)
    )


def module_files(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """Return the files of modules and of what they need, in the order of loading.

    A module that is built into the kernel has no file.
    """
    needs: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text(encoding="ascii").splitlines():
        file, _, after = line.partition(":")
        needs[file] = after.split()
    by_name = {Path(file).name.partition(".")[0].replace("-", "_"): file for file in needs}
    ordered: dict[str, None] = {}
    for name in names:
        found = by_name.get(name.replace("-", "_"))
        if found is not None:
            # modules.dep lists the nearest first, so the farthest is loaded first.
            ordered.update(dict.fromkeys([*reversed(needs[found]), found]))
    return [kernel.modules / file for file in ordered]


def _plain(module: Path) -> bytes:
    content = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(content)
    if module.suffix != ".ko":
        raise MachineError(f"{module.name} is compressed in a way that is not known here")
    return content


def initramfs(kernel: Kernel, busybox: Path | None = None) -> bytes:
    """Return the archive that boots a machine of this kernel to its root over 9p.

    Raises:
        MachineError: there is no busybox that needs no libraries.

    """
    found = busybox or shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin")
    if found is None:
        raise MachineError("busybox is not there: install the package busybox-static")
    folder = stat.S_IFDIR | 0o755
    program = stat.S_IFREG | 0o755
    files = [(name, folder, b"") for name in (
        "bin", "dev", "lower", "modules", "proc", "root", "sys", "upper",
    )]  # fmt: skip
    files.append(("bin/busybox", program, Path(found).read_bytes()))
    files.append(("init", program, INIT.encode()))
    order = []
    for module in module_files(kernel, ROOT_MODULES):
        name = module.name.partition(".")[0] + ".ko"
        files.append((f"modules/{name}", program, _plain(module)))
        order.append(name)
    files.append(("modules/order", stat.S_IFREG | 0o644, "\n".join(order).encode()))
    return archive(files)
