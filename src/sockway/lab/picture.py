"""A drawn picture of a lab's network: SVG that any browser shows, by day and by night.

Each router is a column: its clients above it, its balancers and backends below; links between
routers are the bold lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from sockway.errors import ConfigError
from sockway.lab.topology import NodePlan, Topology

_WIDTH, _HEIGHT = 158, 54
_GAP: Final = 14
_ROW_GAP: Final = 26
_WIDEST: Final = 4
"""Hosts beside each other below one router."""
_MARGIN: Final = 24
_BETWEEN: Final = 56
"""Columns of routers."""
_GUTTER: Final = 14
"""Left of a column, where links to rows further away are."""
_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #22262a; }
  .small { font-size: 10.5px; fill: #667079; }
  .title { font-weight: 600; }
  rect { stroke-width: 1.5; }
  .client { fill: #e8f1fa; stroke: #3b82c4; }
  .router { fill: #eceff1; stroke: #667079; }
  .balancer { fill: #fdf1e1; stroke: #d98324; }
  .backend { fill: #e5f5ee; stroke: #2a9d6f; }
  .link { stroke: #9aa4ad; stroke-width: 1.2; fill: none; }
  .uplink { stroke: #667079; stroke-width: 3; fill: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7ea; }
    .small { fill: #9aa4ad; }
    .client { fill: #17324a; }
    .router { fill: #2b3136; }
    .balancer { fill: #432c10; }
    .backend { fill: #123a2a; }
  }
"""


@dataclass(frozen=True)
class _Box:
    """Where something is."""

    x: float
    y: float
    width: float = _WIDTH
    height: float = _HEIGHT

    @property
    def centre(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


def draw(topology: Topology) -> str:
    """The network as SVG.

    Raises:
        ConfigError: there can't be such a network.

    """
    topology.check()
    of = {
        router.name: [node for node in topology.nodes if node.router == router.name]
        for router in topology.routers
    }
    above = {name: _rows([n for n in nodes if n.role == "client"]) for name, nodes in of.items()}
    below = {
        name: [
            *_rows([node for node in nodes if node.role == "balancer"]),
            *_rows([node for node in nodes if node.role == "backend"]),
        ]
        for name, nodes in of.items()
    }
    step = _HEIGHT + _ROW_GAP
    level = _MARGIN + 44 + max(map(len, above.values())) * step
    routers: dict[str, _Box] = {}
    parts: list[str] = []
    left = float(_MARGIN + _GUTTER)
    for name in of:
        widest = max([1, *(len(row) for row in (*above[name], *below[name]))])
        box = routers[name] = _Box(left, level, widest * (_WIDTH + _GAP) - _GAP)
        for number, row in enumerate(above[name]):
            parts += _row(row, box, level - (len(above[name]) - number) * step)
        for number, row in enumerate(below[name]):
            parts += _row(row, box, level + (number + 1) * step)
        left += box.width + _BETWEEN
    links = [_uplink(routers[plan.router], routers[plan.name]) for plan in topology.uplinks]
    boxes = [_box(box, name, "router", _of_router(topology, name)) for name, box in routers.items()]
    width = max(left - _BETWEEN + _MARGIN, 560)
    height = level + (max(map(len, below.values())) + 1) * step + _MARGIN
    heading = (
        f'<text x="{_MARGIN}" y="{_MARGIN + 4}" class="title">lab {escape(topology.name)}</text>'
        f'<text x="{_MARGIN}" y="{_MARGIN + 22}" class="small">VIPs {topology.vips4}, '
        f"{topology.vips6}, by ECMP to the nearest balancers; MTU {topology.mtu} to clients, "
        f"{topology.tunnel_mtu} elsewhere</text>"
    )
    # Lines first, for boxes cover their ends.
    lines = [part for part in parts if part.startswith("<path")]
    rest = [part for part in parts if not part.startswith("<path")]
    label = quoteattr(f"The network of lab {topology.name}")
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={label}>',
        f"<style>{_STYLE}</style>", heading, *lines, *links, *boxes, *rest, "</svg>", "",
    ])  # fmt: skip


def write(topology: Topology, path: Path) -> None:
    """Write the picture.

    Raises:
        ConfigError: it can't be written there, or there can't be such a network.

    """
    text = draw(topology)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror}", hint="name a file in a directory that is there"
        ) from None


def _rows(nodes: Sequence[NodePlan]) -> list[Sequence[NodePlan]]:
    return [nodes[at : at + _WIDEST] for at in range(0, len(nodes), _WIDEST)]


def _row(row: Sequence[NodePlan], router: _Box, y: float) -> Iterator[str]:
    """Hosts beside each other, and their links to the router."""
    width = len(row) * (_WIDTH + _GAP) - _GAP
    is_above = y < router.y
    edge = router.y if is_above else router.bottom
    for number, plan in enumerate(row):
        box = _Box(router.centre - width / 2 + number * (_WIDTH + _GAP), y)
        near = box.bottom if is_above else box.y
        turn = near + (_ROW_GAP / 2 if is_above else -_ROW_GAP / 2)
        way = f"M{box.centre:g} {near:g} "
        if abs(near - edge) <= _ROW_GAP:
            way += f"V{edge:g}"
        else:
            # Round the rows that are between, not behind them.
            way += f"V{turn:g} H{router.x - _GUTTER:g} V{router.y + _HEIGHT * 0.75:g} H{router.x:g}"
        yield f'<path class="link" d="{way}"/>'
        yield _box(box, plan.name, plan.role, [plan.address4, plan.address6])


def _uplink(upper: _Box, lower: _Box) -> str:
    one, other = sorted((upper, lower), key=lambda box: box.x)
    y = one.y + one.height / 2
    start, end = one.x + one.width, other.x
    if end - start <= _BETWEEN:
        return f'<path class="uplink" d="M{start:g} {y:g} H{end:g}"/>'
    over = one.y - _ROW_GAP / 2
    return (
        f'<path class="uplink" d="M{start - 20:g} {one.y:g} C{start:g} {over:g} {end:g} {over:g} '
        f'{end + 20:g} {other.y:g}"/>'
    )


def _of_router(topology: Topology, name: str) -> list[str]:
    for plan in topology.uplinks:
        if plan.name == name:
            return [f"{plan.address4}, {plan.address6}"]
    return ["router"]


def _box(box: _Box, name: str, role: str, lines: Sequence[str]) -> str:
    texts = "".join(
        f'<text x="{box.centre:g}" y="{box.y + 34 + 13 * number:g}" class="small" '
        f'text-anchor="middle">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<g id={quoteattr(name)}><rect class="{role}" x="{box.x:g}" y="{box.y:g}" rx="7" '
        f'width="{box.width:g}" height="{box.height:g}"/><text x="{box.centre:g}" '
        f'y="{box.y + 19:g}" class="title" text-anchor="middle">{escape(name)}</text>{texts}</g>'
    )


__all__ = ["draw", "write"]
