"""What a supervisor that was killed leaves, and what the next one does with it.

Its workers live and serve: what was published is published. A generation that was published takes
part in the next one's life: it is watched, it retires after the first publish, it can be rolled
back to. Everything else is cleared away: generations that nobody published, generations without a
socket, processes of generations that are gone.
"""

from __future__ import annotations

import contextlib
import signal

from sockway.errors import StateError
from sockway.serve.events import LineSink, Observer
from sockway.serve.identity import read_record
from sockway.serve.process import Process
from sockway.serve.run import GenerationRun
from sockway.serve.runtime import RuntimeDirectory
from sockway.serve.spec import ServeSpec
from sockway.sockets.service import Service


def adopt(
    service: Service,
    spec: ServeSpec,
    runtime: RuntimeDirectory,
    tell: Observer,
    print_line: LineSink,
) -> list[GenerationRun]:
    """Take over what serves, clear away what does not.

    Args:
        service: opened.
        spec: how the adopted generations are retired.
        runtime: of the service; this process is its supervisor.
        tell: gets `adopted` and `cleared` steps.
        print_line: gets what the adopted workers print.

    Returns:
        The generations that were published once and have live sockets.

    Raises:
        BusyError: another process is changing the service at this moment.

    """
    adopted: list[GenerationRun] = []
    with service.changing():
        service.collect()
        for generation in service.generations:
            run = GenerationRun(generation, _spec_of(runtime, generation.number, spec), runtime,
                                tell, print_line)  # fmt: skip
            run.adopt()
            if generation.state == "preparing":
                _kill(run.processes)
                generation.take_out()
            else:
                run.stage = "live"
                run.record()
                adopted.append(run)
                tell(
                    {
                        "step": "adopted",
                        "generation": run.number,
                        "pids": [process.pid for process in run.processes],
                    }
                )
    kept = {run.number for run in adopted}
    for number in runtime.generations():
        if number not in kept:
            _clear(runtime, number)
            tell({"step": "cleared", "generation": number})
    return adopted


def _spec_of(runtime: RuntimeDirectory, number: int, spec: ServeSpec) -> ServeSpec:
    """The present spec, but with the stop signal that the generation's program wants."""
    stop_signal = runtime.read_record(number).get("stop_signal")
    return spec.changed(stop_signal=stop_signal) if isinstance(stop_signal, str) else spec


def _clear(runtime: RuntimeDirectory, number: int) -> None:
    """End the processes of a generation that the router does not have, and forget it."""
    for path in runtime.path.glob(f"generation-{number}.*.pid"):
        record = read_record(path)
        if record is not None and (process := Process.adopt(*record)):
            _kill([process])
    runtime.forget(number)


def _kill(processes: list[Process]) -> None:
    """Nobody is connected to them."""
    for process in processes:
        with contextlib.suppress(StateError):
            process.kill()
            process.send(signal.SIGKILL)
            process.detach()
