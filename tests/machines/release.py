"""One release under load, in a machine: start a server, release it, count what failed.

Runs in a machine, with the installed Sockway, and needs nothing beside it and uvicorn. Prints JSON:
requests, failures, and how many were answered by each generation.
"""

from __future__ import annotations

import collections
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

PORT = 8080
# Times are for an emulated machine on a busy one: a hundredth of its speed.
SOCKWAY = (sys.executable, "-m", "sockway")
SERVER = (
    *SOCKWAY, "serve", "--name", "web", "--listen", f"tcp://127.0.0.1:{PORT}", "--workers", "2",
    "--ready-timeout", "600",
    "--", sys.executable, "-m", "uvicorn", "--no-access-log", "--lifespan", "off",
    "sockway.lab.servers.app:app", "--fd", "{fd}",
)  # fmt: skip


def ask() -> int:
    """Return the generation that answers one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise http.client.HTTPException(f"status {answer.status}")
        _pid, generation, _worker = body.split()
        return int(generation)
    finally:
        connection.close()


class Load:
    """Clients that ask one after another until they are stopped."""

    def __init__(self, clients: int) -> None:
        """Start them."""
        self.answers: collections.Counter[int] = collections.Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers[ask()] += 1
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures.append(repr(error))

    def stop(self) -> None:
        """Let each finish what it asks."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def wait_for_answer(server: subprocess.Popen[bytes], seconds: float) -> None:
    """Return when the first request is answered."""
    end = time.monotonic() + seconds
    while True:
        try:
            ask()
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return


def command(words: Sequence[str]) -> None:
    """Run a command of Sockway; what it says goes to stderr."""
    subprocess.run([*SOCKWAY, *words], check=True, stdout=sys.stderr)


def main() -> int:
    """Print what came of it; the status tells whether nothing was lost and both served."""
    server = subprocess.Popen(SERVER, stdout=sys.stderr)
    try:
        wait_for_answer(server, 600)
        load = Load(clients=3)
        time.sleep(3)
        command(["status", "web"])
        command(["release", "web"])
        time.sleep(3)
        load.stop()
        command(["status", "web"])
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(300)
    result = {
        "requests": sum(load.answers.values()) + len(load.failures),
        "failed": len(load.failures),
        "failures": load.failures[:5],
        "answers": dict(sorted(load.answers.items())),
        "server": status,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    lost = load.failures or len(load.answers) < 2 or status
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
