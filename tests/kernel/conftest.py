"""The tests' own BPF objects, compiled once a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hatch_build import compile_object
from sockway.kernel import BpfObject, Map, MapType

SOURCES = Path(__file__).parent / "bpf"
Compile = Callable[..., Path]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile `NAME.bpf.c` of these tests, with more flags for the compiler if given."""
    folder = tmp_path_factory.mktemp("objects")
    made: dict[tuple[str, ...], Path] = {}

    def make(name: str, *flags: str) -> Path:
        if (name, *flags) not in made:
            target = folder / f"{name}{len(made)}.bpf.o"
            compile_object(SOURCES / f"{name}.bpf.c", target, flags)
            made[name, *flags] = target
        return made[name, *flags]

    return make


@pytest.fixture
def shapes(compiled: Compile) -> Iterator[BpfObject]:
    """The object with all shapes, opened and not loaded."""
    with BpfObject.open(compiled("shapes"), name="shapes") as opened:
        yield opened


@pytest.fixture
def loaded(shapes: BpfObject) -> BpfObject:
    """The object with all shapes, loaded."""
    shapes.load()
    return shapes


@pytest.fixture
def make_map() -> Iterator[Callable[..., Map]]:
    """Create maps; they are closed after the test."""
    made: list[Map] = []

    def make(kind: MapType, key_size: int = 4, value_size: int = 8, **options: object) -> Map:
        options.setdefault("max_entries", 8)
        created = Map.create(kind, key_size=key_size, value_size=value_size, **options)  # type: ignore[arg-type]
        made.append(created)
        return created

    yield make
    for each in made:
        each.close()
