"""The moment between fork and exec of a worker, as a program of its own.

    python -I -S launch.py DESCRIPTORS IDENTITY -- PROGRAM ARGUMENTS...

It puts the passed sockets where sd_listen_fds(3) wants them (from 3 on), sets LISTEN_PID to its
own pid, which only the process itself knows, becomes the unprivileged user, and is replaced by the
program. A program and not a hook of the parent's: between fork and exec of a process with threads
hardly anything is safe. It imports nothing of the project and little else, for it starts each time.
"""

import os
import sys

FIRST_FD = 3


def place(descriptors: list[int]) -> None:
    """Have `descriptors` at 3, 4, 5, ... inheritable, whatever was there before."""
    # Out of the way first: a target may be the source of another.
    high = max((*descriptors, FIRST_FD + len(descriptors))) + 1
    moved = []
    for descriptor in descriptors:
        moved.append(os.dup2(descriptor, high + len(moved), inheritable=False))
    for at, descriptor in enumerate(moved):
        os.dup2(descriptor, FIRST_FD + at, inheritable=True)
    # The originals above the last target, and the copies, must not stay open in the server: a
    # socket lives as long as any descriptor does.
    os.closerange(FIRST_FD + len(descriptors), high + len(moved))


def become(identity: str) -> None:
    """Change to `uid:gid:group,group,...`; nothing where it is empty."""
    if not identity:
        return
    uid, gid, groups = identity.split(":")
    os.setgroups([int(group) for group in groups.split(",")])
    os.setgid(int(gid))
    os.setuid(int(uid))


def main() -> None:
    """Do all of it."""
    descriptors, identity, dashes, *command = sys.argv[1:]
    if dashes != "--":
        sys.exit("launch.py: not called by sockway")
    place([int(text) for text in descriptors.split(",") if text])
    os.environ["LISTEN_PID"] = str(os.getpid())
    try:
        become(identity)
        os.execvp(command[0], command)  # noqa: S606 - this is its purpose
    except OSError as error:
        # The supervisor sees status 127, as a shell's user would.
        sys.stderr.write(f"sockway: can't run {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


if __name__ == "__main__":
    main()
