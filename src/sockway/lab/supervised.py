"""HTTP/3 servers in a lab as services of `sockway serve`, released while clients are connected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sockway.errors import SockwayError
from sockway.lab.network import Lab, Node
from sockway.lab.patience import patient
from sockway.lab.servers.certificate import write_certificate

SERVICE: Final = "h3"
WORKERS: Final = 2
_PATIENCE: Final = 60.0
_SETTINGS: Final = {
    "name": SERVICE, "workers": WORKERS, "ready": "notify",
    # An old generation stays until the lab ends, and is not waited for then.
    "linger": 3600.0, "drain_timeout": 0.5, "flows": 1024,
}  # fmt: skip


class Http3Service:
    """The HTTP/3 service of one host: two workers a generation."""

    def __init__(self, lab: Lab, node: Node, places: Sequence[str], server_id: int) -> None:
        """Take where it is; nothing is started.

        Args:
            lab: whose directory its files are in.
            node: the host.
            places: `ADDRESS:PORT` of its VIPs.
            server_id: the host's number.

        """
        self._lab = lab
        self._node = node
        self._places = places
        self._server_id = server_id
        self._process: subprocess.Popen[str] | None = None

    def begin(self, ids: Mapping[str, Any]) -> None:
        """Start it; see `wait`."""
        self._configure(ids)
        with self._log.open("w") as log:
            self._process = self._node.popen(
                [*_SOCKWAY, "serve", "--json", "--config", str(self._file)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when its first generation is published.

        Raises:
            SockwayError: it is not.

        """
        assert self._process is not None  # noqa: S101 - begin() made it
        assert self._process.stdout is not None  # noqa: S101
        for line in self._process.stdout:
            step = json.loads(line)
            if step.get("step") == "published":
                self._process.stdout.close()  # what it tells later nobody reads
                return
            if "error" in step:
                raise SockwayError(f"{SERVICE} of {self._node.name}: {step['error']}")
        said = self._log.read_text(encoding="utf-8").strip()
        raise SockwayError(f"{SERVICE} of {self._node.name} does not start: {said[-500:]}")

    def release(self, ids: Mapping[str, Any]) -> int:
        """Publish a new generation, whose connection IDs are of this configuration; its number.

        Raises:
            SockwayError: the release failed.

        """
        self._configure(ids)
        process = self._node.popen(
            [*_SOCKWAY, "release", SERVICE, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        said, wrong = process.communicate(timeout=patient(_PATIENCE))
        if process.returncode:
            raise SockwayError(f"release of {SERVICE} on {self._node.name}: {said}{wrong}")
        # Steps may come first; the answer is the last line.
        return int(json.loads(said.splitlines()[-1])["generation"])

    def _configure(self, ids: Mapping[str, Any]) -> None:
        """Write the service's file; a key is in one of its own."""
        certificate = self._certificate()
        command = [sys.executable, "-m", "sockway.lab.servers.named_quic", self._node.name]
        listen = [f"udp://{place}?flow=quic&ids=sockway" for place in self._places]
        settings = {
            **_SETTINGS, "listen": listen, "command": command + [str(each) for each in certificate]
        }  # fmt: skip
        quic_lb: dict[str, Any] = {**ids, "server_id": self._server_id}
        if key := quic_lb.pop("key", None):
            path = self._directory / f"{self._node.name}.key"
            path.touch(mode=0o600)
            path.write_text(key, encoding="ascii")
            quic_lb["key_file"] = str(path)
        lines = [_toml(settings), "[quic_lb]", _toml(quic_lb)]
        self._file.write_text("\n".join(lines), encoding="utf-8")

    def _certificate(self) -> tuple[Path, Path]:
        """One for all hosts of the lab."""
        paths = self._directory / "cert.pem", self._directory / "key.pem"
        return paths if paths[1].exists() else write_certificate(self._directory)

    @property
    def _directory(self) -> Path:
        return self._lab.directory

    @property
    def _log(self) -> Path:
        return self._directory / f"{self._node.name}-{SERVICE}.log"

    @property
    def _file(self) -> Path:
        return self._directory / f"{self._node.name}-{SERVICE}.toml"

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SOCKWAY_RUNTIME": str(self._directory / "services")}


_SOCKWAY: Final = (sys.executable, "-m", "sockway")


def _toml(fields: Mapping[str, Any]) -> str:
    # Strings, numbers and lists of strings are written as in JSON.
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())


__all__ = ["SERVICE", "WORKERS", "Http3Service"]
