"""A sketch drawn as SVG, from top to bottom: layers by longest path, then few crossings, then straight lines.

The method is that of Sugiyama, Tagawa and Toda (IEEE Trans. SMC 11(2), 1981), with barycentres for the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from opcel_compiler.report.escape import escaped, shortened
from opcel_compiler.report.sketch import KINDS, Sketch

MAX_BOXES = 300
"""So many boxes are drawn; chains are joined to one box where there are more."""
MAX_SPAN = 12
"""An arrow over more layers is drawn as two stubs."""

WIDTH, HEIGHT, GAP, LANE, LAYER = 168, 38, 18, 12, 62
LETTERS = 22


@dataclass
class _Box:
    """A box, or a bend of an arrow when `node` is None."""

    node: int | None
    layer: int
    above: list[_Box] = field(default_factory=list)
    below: list[_Box] = field(default_factory=list)
    x: float = 0.0
    trunk: bool = False

    @property
    def width(self) -> int:
        return LANE if self.node is None else WIDTH + GAP


def joined(sketch: Sketch, limit: int = MAX_BOXES) -> tuple[Sketch, int]:
    """The sketch with chains of boxes joined when it has more than `limit`, then cut to `limit`; and how many boxes
    were left out."""
    nodes, edges = sketch["nodes"], sketch["edges"]
    if len(nodes) <= limit:
        return sketch, 0
    out_degree, source = [0] * len(nodes), [-1] * len(nodes)
    for a, b in edges:
        out_degree[a] += 1
        source[b] = a if source[b] == -1 else -2
    home = list(range(len(nodes)))
    members: dict[int, list[int]] = {}
    for i, (kind, _, _) in enumerate(nodes):
        a = source[i]
        joins = a >= 0 and out_degree[a] == 1 and nodes[a][0] == kind != "port"
        joins |= a >= 0 and out_degree[a] == 1 and "port" not in (kind, nodes[a][0]) and len(members[home[a]]) < 8
        home[i] = home[a] if joins else i
        members.setdefault(home[i], []).append(i)
    kept = list(members)[:limit]
    index = {h: i for i, h in enumerate(kept)}
    boxes = []
    for h in kept:
        titles = [nodes[i][1] for i in members[h]]
        many = f"{len(titles)}: {titles[0]} … {titles[-1]}"
        boxes.append(nodes[h] if len(titles) == 1 else [_main(nodes, members[h]), many, nodes[h][2]])
    pairs = {(index[home[a]], index[home[b]]): None for a, b in edges if home[a] in index and home[b] in index}
    forward = sorted((a, b) for a, b in pairs if a < b)
    return {"nodes": boxes, "edges": [list(p) for p in forward]}, len(members) - len(kept)


def _main(nodes: Sequence[Sequence[str]], members: Sequence[int]) -> str:
    """The kind that a chain is coloured by: its heaviest."""
    rank = ("fallback", "contraction", "row", "reduction", "elementwise", "movement")
    return min((nodes[i][0] for i in members), key=rank.index)


def svg(sketch: Sketch, label: str) -> str:
    """The picture as an SVG element in its natural size, behind a mark where its middle is; `label` is what a screen
    reader says of it."""
    nodes = sketch["nodes"]
    if not nodes:
        return ""
    layers, long = _layers(len(nodes), sketch["edges"])
    _order(layers)
    _place(layers)
    left = min(b.x - b.width / 2 for layer in layers for b in layer)
    right = max(b.x + b.width / 2 for layer in layers for b in layer)
    width, height = round(right - left) + 8, len(layers) * LAYER - (LAYER - HEIGHT) + 12
    for layer in layers:
        for box in layer:
            box.x = round(box.x - left + 4)
    boxes = {b.node: b for layer in layers for b in layer if b.node is not None}
    middle = next(b.x for b in layers[-1] if b.trunk)
    parts = [
        f'<i style="left:{max(0, round(middle) - WIDTH)}px"></i>'
        f'<svg role="img" aria-label="{escaped(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><path class="a" d="{_lines(layers)}"/>'
    ]
    if long:
        parts.append(f'<path class="s" d="{_stubs(boxes, long)}"/>')
    parts += [_box(nodes[i], boxes[i]) for i in range(len(nodes))]
    return "".join([*parts, "</svg>"])


# -- layout ------------------------------------------------------------------------------------------------------------


def _layers(count: int, edges: Iterable[Sequence[int]]) -> tuple[list[list[_Box]], list[tuple[int, int]]]:
    """Boxes and bends by layer, and the edges that span too many. What only inputs lead to lies just above its use."""
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        above[b].append(a)
        below[a].append(b)
    depth = [0] * count
    for i in range(count):
        depth[i] = max((depth[a] + 1 for a in above[i]), default=0)
    late = [False] * count
    for i in range(count):
        late[i] = all(late[a] and len(below[a]) == 1 for a in above[i])
    for i in reversed(range(count)):
        if late[i] and below[i]:
            depth[i] = min(depth[b] for b in below[i]) - 1
    layers: list[list[_Box]] = [[] for _ in range(max(depth) + 1)]
    boxes = [_Box(i, depth[i]) for i in range(count)]
    for box in boxes:
        layers[box.layer].append(box)
    long = []
    for i in range(count):
        for b in below[i]:
            if depth[b] - depth[i] > MAX_SPAN:
                long.append((i, b))
                continue
            last = boxes[i]
            for level in range(depth[i] + 1, depth[b]):
                bend = _Box(None, level)
                layers[level].append(bend)
                last.below.append(bend)
                bend.above.append(last)
                last = bend
            last.below.append(boxes[b])
            boxes[b].above.append(last)
    return layers, long


def _order(layers: list[list[_Box]]) -> None:
    """Sort each layer by the mean place of its neighbours, down and up."""
    place = {id(b): float(i) for layer in layers for i, b in enumerate(layer)}
    for sweep in range(4):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            keys = {}
            for box in layer:
                near = box.above if down else box.below
                keys[id(box)] = sum(place[id(n)] for n in near) / len(near) if near else place[id(box)]
            layer.sort(key=lambda b: keys[id(b)])
            for i, box in enumerate(layer):
                place[id(box)] = float(i)


def _place(layers: list[list[_Box]]) -> None:
    """Give each box its x: as near to the mean of its neighbours as its own neighbours in the layer allow."""
    for layer in layers:
        x = -sum(b.width for b in layer) / 2
        for box in layer:
            box.x, x = x + box.width / 2, x + box.width
    _mark_trunk(layers)
    for sweep in range(8):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = []
            for box in layer:
                near = (box.above if sweep % 2 == 0 else box.below) or box.above or box.below
                pull = [_weight(n) for n in near]
                mean = sum(n.x * w for n, w in zip(near, pull, strict=True)) / sum(pull) if near else box.x
                wanted.append(0.0 if box.trunk else mean)
            _spread(layer, wanted)


def _weight(box: _Box) -> int:
    """Lanes of arrows make way for boxes, and all for the trunk."""
    return 1 if box.node is None else 1_000_000 if box.trunk else 200


def _mark_trunk(layers: list[list[_Box]]) -> None:
    """A longest path, the middle of those there are: it is drawn straight, which keeps the rest from drifting."""
    box: _Box | None = next(b for b in layers[-1] if b.node is not None)
    while box is not None:
        box.trunk = True
        near = [b for b in box.above if b.above] or box.above
        box = near[len(near) // 2] if near else None


def _spread(layer: list[_Box], wanted: Sequence[float]) -> None:
    """The x nearest to `wanted` (weighted least squares) that keep order and distances: pool adjacent violators."""
    groups: list[tuple[float, int, int]] = []
    offsets, total = [], 0.0
    for i, box in enumerate(layer):
        if i:
            total += (layer[i - 1].width + box.width) / 2
        offsets.append(total)
    for box, w, offset in zip(layer, wanted, offsets, strict=True):
        mean, weight, size = w - offset, _weight(box), 1
        while groups and groups[-1][0] > mean:
            other, heavy, count = groups.pop()
            mean = (mean * weight + other * heavy) / (weight + heavy)
            weight, size = weight + heavy, size + count
        groups.append((mean, weight, size))
    i = 0
    for mean, _, size in groups:
        for _ in range(size):
            layer[i].x = mean + offsets[i]
            i += 1


# -- drawing -----------------------------------------------------------------------------------------------------------


def _top(box: _Box) -> int:
    return box.layer * LAYER + 6


def _lines(layers: list[list[_Box]]) -> str:
    parts = []
    for layer in layers:
        for box in layer:
            y = _top(box) + HEIGHT
            for end in box.below:
                to = _top(end)
                middle = (y + to) // 2
                bend = f"V{to}" if box.x == end.x else f"C{box.x:g} {middle} {end.x:g} {middle} {end.x:g} {to}"
                start = f"M{box.x:g} {y}" if box.node is not None else f"M{box.x:g} {y - HEIGHT}V{y}"
                parts.append(start + bend)
    return "".join(parts)


def _stubs(boxes: dict[int, _Box], long: Iterable[tuple[int, int]]) -> str:
    ends = dict.fromkeys(a for a, _ in long), dict.fromkeys(b for _, b in long)
    starts = (f"M{boxes[a].x + WIDTH / 2 - 12:g} {_top(boxes[a]) + HEIGHT}v12" for a in ends[0])
    return "".join([*starts, *(f"M{boxes[b].x + WIDTH / 2 - 12:g} {_top(boxes[b])}v-12" for b in ends[1])])


def _box(node: Sequence[str], box: _Box) -> str:
    kind, title, subtitle = node[0] if node[0] in KINDS else KINDS[-1], str(node[1]), str(node[2])
    x, y = box.x - WIDTH / 2, _top(box)
    hint = f"{title}: {subtitle}" if subtitle else title
    below = shortened(subtitle, LETTERS + 4, keep_end=kind != "port")
    return (
        f'<g class="{kind}"><title>{escaped(shortened(hint, 300))}</title>'
        f'<rect x="{x:g}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{box.x:g}" y="{y + 16}">{escaped(shortened(title, LETTERS))}</text>'
        f'<text class="n" x="{box.x:g}" y="{y + 30}">{escaped(below)}</text></g>'
    )
