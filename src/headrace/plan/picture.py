"""A plan's graph as a picture: parts in columns, as rows go from left to right, as one SVG without a script.

Columns are the longest ways from where rows come in; in each, parts lie where few arrows cross: the barycentre method
of Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System Structures", 1981.

Where a width is given, parts become narrower until all columns fit beside each other; where they would be too narrow,
columns are broken into bands, one below the other, as the words of a text are into lines.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from headrace.plan.graph import Arrow, Graph, Part

CHARACTER, LINE, PADDING = 7.3, 15.0, 10.0
SPARE = 20  # characters that a line of numbers has at least
WIDEST = 26  # characters of a line; all of it is in the part's tooltip
GAP_X, GAP_Y = 56.0, 16.0
NARROW, NARROWEST = 16, 12  # characters of a line where all columns lie beside each other, and in bands
NARROW_GAP = 34.0
LANE, LANES = 8.0, 12  # arrows from one band to another are so far apart; so many have a height of their own
MARGIN = 12.0
SWEEPS = 12
BENT = 6.0  # height of a place where a long arrow passes through a column

STYLE = """
.hr-plan{font:12px/15px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;color:inherit}
.hr-plan text{fill:currentColor}
.hr-plan .about{opacity:.7}
.hr-plan .box{fill:currentColor;fill-opacity:.05;stroke:currentColor;stroke-opacity:.45}
.hr-plan :is(.source,.sink,.endpoint) .box{fill:#4c78a8;fill-opacity:.18;stroke:#4c78a8;stroke-opacity:1}
.hr-plan .model .box{fill:#54a24b;fill-opacity:.2;stroke:#54a24b;stroke-opacity:1}
.hr-plan .operator .box{fill:#b279a2;fill-opacity:.16;stroke:#b279a2;stroke-opacity:1}
.hr-plan .operator:is(.alarm,.drift) .box{fill:#e45756;fill-opacity:.16;stroke:#e45756}
.hr-plan .training .box{fill:#f58518;fill-opacity:.18;stroke:#f58518;stroke-opacity:1}
.hr-plan .arrow{fill:none;stroke:currentColor;stroke-opacity:.5}
.hr-plan .back{stroke-dasharray:5 4}
.hr-plan .tip{fill:currentColor;fill-opacity:.6}
""".strip().replace("\n", "")


@dataclass(frozen=True, slots=True)
class _Form:
    """How wide parts are, and how many columns lie beside each other.

    Attributes:
        widest: characters of a line; ``lines`` that a text may have: 1 or 2.
        band: columns of a band; 0: all of them.
    """

    widest: int = WIDEST
    lines: int = 1
    gap: float = GAP_X
    band: int = 0

    def band_of(self, column: int) -> int:
        """Return the number of the band that a column lies in."""
        return column // self.band if self.band else 0

    def texts(self, text: str) -> list[str]:
        """Return a text in lines; what is too long is cut off.

        >>> _Form(10, 2).texts("machine-measurement"), _Form(10).texts("machine-measurement"), _Form().texts("")
        (['machine-', 'measureme…'], ['machine-m…'], [])
        """
        if len(text) <= self.widest:
            return [text] if text else []
        if self.lines == 1:
            return [self._clipped(text)]
        end = max(text.rfind(sign, 0, self.widest) for sign in " -_.,:=(") + 1
        end = end if end > self.widest // 3 else self.widest
        return [text[:end].rstrip(), self._clipped(text[end:].lstrip())]

    def _clipped(self, text: str) -> str:
        return text if len(text) <= self.widest else f"{text[: self.widest - 1]}…"


@dataclass(slots=True)
class _Place:
    """A part in its column, or a place where a long arrow passes through one (``part`` is None).

    Attributes:
        texts: its title and what it is about, in lines.
    """

    part: Part | None
    column: int
    width: float
    height: float
    texts: tuple[list[str], list[str]] = ([], [])
    x: float = 0.0
    y: float = 0.0

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Picture:
    """Parts with their places, in pixels, and the ways of arrows between them.

    Attributes:
        boxes: id of a part -> x, y, width, height.
        texts: id of a part -> lines of its title, and of what it is about.
        ways: of each arrow, points from its start to its end; ``back``: arrows that lead back.
    """

    width: float
    height: float
    graph: Graph
    boxes: Mapping[str, tuple[float, float, float, float]]
    texts: Mapping[str, tuple[list[str], list[str]]]
    ways: Sequence[tuple[Arrow, Sequence[tuple[float, float]]]]
    back: frozenset[Arrow]


def laid_out(graph: Graph, *, spare: int | Mapping[str, int] = 0, width: float = 0.0) -> Picture:
    """Return where everything lies.

    Args:
        spare: lines that are left free in each part, or in parts of a kind, for their numbers.
        width: that is to be kept to; 0: as wide as it becomes.
    """
    ways = _without_circles(graph)
    columns = _columns(graph, ways[0])
    found = _laid_out(graph, ways, columns, _Form(), spare)
    count = max(columns.values(), default=0) + 1
    if not width or found.width <= width or count == 1:
        return found
    for form in _narrower(width, count):
        found = _laid_out(graph, ways, columns, form, spare)
        if found.width <= width:
            break
    return found


def _narrower(width: float, count: int) -> Iterator[_Form]:
    """Yield forms for a width, the nicest first."""
    room = width - 2 * MARGIN

    def widest(columns: int, gap: float) -> int:
        return min(WIDEST, int(((room - gap * columns) / columns - 2 * PADDING) / CHARACTER))

    if (most := widest(count, NARROW_GAP)) >= NARROW:
        yield from (_Form(letters, 2, NARROW_GAP) for letters in range(most, NARROW - 1, -1))
    fitting = max(1, int((room + NARROW_GAP) / (NARROWEST * CHARACTER + 2 * PADDING + NARROW_GAP)))
    for columns in range(min(fitting, count), 0, -1):
        band = -(-count // -(-count // columns))  # bands of one size
        most = max(NARROWEST, widest(band, NARROW_GAP))
        yield from (_Form(letters, 2, NARROW_GAP, band) for letters in range(most, NARROWEST - 1, -1))


def _laid_out(
    graph: Graph,
    ways: tuple[Sequence[Arrow], Sequence[Arrow]],
    columns: Mapping[str, int],
    form: _Form,
    spare: int | Mapping[str, int],
) -> Picture:
    forward, backward = ways
    places = {part.id: _box(part, columns[part.id], form, spare) for part in graph.parts.values()}
    chains = {arrow: _chain(arrow, places, columns) for arrow in forward}
    order = _ordered(places, chains)
    # An arrow to another band goes beside the columns, and passes through none.
    leaving = [arrow for arrow in forward if form.band_of(columns[arrow.start]) != form.band_of(columns[arrow.end])]
    passing = {id(place) for arrow in leaving for place in chains.pop(arrow)[1:-1]}
    order = [[place for place in column if id(place) not in passing] for column in order]
    lanes = _lie(order, chains, form, [form.band_of(columns[arrow.start]) for arrow in leaving])
    bottom = max((place.y + place.height for column in order for place in column), default=0.0)
    drawn = [(arrow, _way(chain)) for arrow, chain in chains.items()]
    for number, (arrow, lane) in enumerate(zip(leaving, lanes, strict=True)):
        drawn.append((arrow, _way_beside(places[arrow.start], places[arrow.end], lane, number, form.gap)))
    for number, arrow in enumerate(backward):
        # Below everything, and up and down between columns: a way of its own for each.
        below = bottom + GAP_Y * (number + 1)
        drawn.append((arrow, _way_beside(places[arrow.start], places[arrow.end], below, number, form.gap)))
    height = bottom + GAP_Y * (len(backward) + 1) + MARGIN
    # Ways beside columns may leave the first one to the left, and the last one to the right.
    xs = [x for _, points in drawn for x, _ in points] + [place.x for place in places.values()]
    shift = MARGIN - min(xs, default=MARGIN)
    right = max([*xs, *(place.x + place.width for place in places.values())], default=0.0)
    boxes = {part_id: (place.x + shift, place.y, place.width, place.height) for part_id, place in places.items()}
    shifted = [(arrow, [(x + shift, y) for x, y in points]) for arrow, points in drawn]
    texts = {part_id: place.texts for part_id, place in places.items()}
    return Picture(right + shift + MARGIN, height, graph, boxes, texts, shifted, frozenset(backward))


def _way(chain: Sequence[_Place]) -> list[tuple[float, float]]:
    """Return the points of an arrow that goes from column to column."""
    first, *between, last = chain
    points = [(first.x + first.width, first.middle)]
    points += [point for place in between for point in ((place.x, place.middle), (place.x + place.width, place.middle))]
    return [*points, (last.x, last.middle)]


def _way_beside(start: _Place, end: _Place, y: float, number: int, gap: float) -> list[tuple[float, float]]:
    """Return the points of an arrow that goes up and down between columns, and along at a height that is free."""
    aside = gap * (0.25 + 0.5 * (number % 4) / 4)
    right, left = start.x + start.width + aside, end.x - aside
    corners = [(right, start.middle), (right, y), (left, y), (left, end.middle)]
    return [(start.x + start.width, start.middle), *corners, (end.x, end.middle)]


def svg(
    picture: Picture,
    *,
    link: Callable[[Part], str] = lambda part: "",
    numbers: Callable[[Part], Sequence[Sequence[tuple[str, str]]]] = lambda part: (),
    style: str = STYLE,
) -> str:
    """Return the picture as one SVG element.

    Args:
        link: where a click on a part goes; empty: nowhere.
        numbers: what stands in a part's spare lines, each of pieces: a key by which a page changes the text
            (``data-live``), or "", and the text.
        style: CSS inside of it; empty where the page has its own.
    """
    width, height = f"{picture.width:.0f}", f"{picture.height:.0f}"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    # An image has no parts that one could go to.
    role = "group" if any(link(part) for part in picture.graph.parts.values()) else "img"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" class="hr-plan" role="{role}" aria-label="the pipeline" {size}>']
    if style:
        out.append(f"<style>{style}</style>")
    tip = f"hr-tip-{width}x{height}"  # of another picture on the same page, which may be hidden, none is drawn
    out.append(
        f'<defs><marker id="{tip}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    for arrow, points in picture.ways:
        title = f"<title>{html.escape(arrow.text)}</title>" if arrow.text else ""
        kind = "arrow back" if arrow in picture.back else "arrow"
        out.append(f'<path class="{kind}" marker-end="url(#{tip})" d="{_path(points)}">{title}</path>')
    for part in picture.graph.parts.values():
        out.append(_drawn(part, picture.boxes[part.id], picture.texts[part.id], link(part), numbers(part)))
    return "".join([*out, "</svg>"])


def _drawn(
    part: Part,
    box: tuple[float, float, float, float],
    texts: tuple[list[str], list[str]],
    link: str,
    numbers: Sequence[Sequence[tuple[str, str]]],
) -> str:
    x, y, width, height = box
    words = " ".join(filter(None, (part.kind, part.operation)))
    radius = {"topic": min(height / 2, 15.0), "model": 4}.get(part.kind, 6)
    title = html.escape(": ".join(filter(None, (part.title, part.about))))
    lines: list[str] = []
    for kind, some in zip(("", ' class="about"'), texts, strict=True):
        for text in some:
            at = y + PADDING + 9 + LINE * len(lines)
            lines.append(f'<text{kind} x="{x + PADDING:.1f}" y="{at:.1f}">{html.escape(text)}</text>')
    for pieces in numbers:
        spans = "".join(
            f'<tspan data-live="{html.escape(key, quote=True)}">{html.escape(text)}</tspan>'
            if key
            else html.escape(text)
            for key, text in pieces
        )
        at = y + PADDING + 9 + LINE * len(lines)
        lines.append(f'<text class="numbers" x="{x + PADDING:.1f}" y="{at:.1f}" xml:space="preserve">{spans}</text>')
    inner = (
        f"<title>{title}</title>"
        f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:.1f}"/>'
        + "".join(lines)
    )
    if link:
        inner = f'<a href="{html.escape(link, quote=True)}">{inner}</a>'
    return f'<g class="{words}" data-part="{html.escape(part.id, quote=True)}">{inner}</g>'


def _has_corners(points: Sequence[tuple[float, float]]) -> bool:
    return any(a[0] == b[0] for a, b in itertools.pairwise(points))


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return a smooth way from left to right, or one with corners."""
    (x, y), *rest = points
    drawn = [f"M{x:.1f} {y:.1f}"]
    if _has_corners(points):
        return "".join([*drawn, *(f"L{a:.1f} {b:.1f}" for a, b in rest)])
    for a, b in rest:
        half = (x + a) / 2
        drawn.append(f"L{a:.1f} {b:.1f}" if y == b else f"C{half:.1f} {y:.1f} {half:.1f} {b:.1f} {a:.1f} {b:.1f}")
        x, y = a, b
    return "".join(drawn)


def _box(part: Part, column: int, form: _Form, spare: int | Mapping[str, int]) -> _Place:
    texts = form.texts(part.title), form.texts(part.about)
    lines = [text for some in texts for text in some]
    free = spare if isinstance(spare, int) else spare.get(part.kind, 0)
    width = max([min(SPARE, form.widest) * bool(free), *map(len, lines)]) * CHARACTER + 2 * PADDING
    return _Place(part, column, width, (len(lines) + free) * LINE + PADDING + 4 * bool(free), texts)


def _without_circles(graph: Graph) -> tuple[list[Arrow], list[Arrow]]:
    """Return arrows that go on, and those that lead back to where rows have come from."""
    after: dict[str, list[Arrow]] = {part_id: [] for part_id in graph.parts}
    backward = [arrow for arrow in graph.arrows.values() if arrow.back]
    for arrow in graph.arrows.values():
        if not arrow.back:
            after[arrow.start].append(arrow)
    forward: list[Arrow] = []
    done: set[str] = set()
    entered = {arrow.end for arrow in graph.arrows.values() if not arrow.back}
    for root in sorted(graph.parts, key=lambda part_id: part_id in entered):
        if root in done:
            continue
        # Depth first, without recursion: a pipeline may be longer than Python's stack.
        way, open_ = [(root, iter(after[root]))], {root}
        while way:
            part_id, arrows = way[-1]
            for arrow in arrows:
                if arrow.end in open_:
                    backward.append(arrow)
                    continue
                forward.append(arrow)
                if arrow.end not in done:
                    open_.add(arrow.end)
                    way.append((arrow.end, iter(after[arrow.end])))
                    break
            else:
                way.pop()
                open_.discard(part_id)
                done.add(part_id)
    return forward, backward


def _columns(graph: Graph, forward: Sequence[Arrow]) -> dict[str, int]:
    """Return each part's column: the longest way to it; what only begins ways lies beside what it leads to."""
    before: dict[str, list[str]] = {part_id: [] for part_id in graph.parts}
    after: dict[str, list[str]] = {part_id: [] for part_id in graph.parts}
    for arrow in forward:
        before[arrow.end].append(arrow.start)
        after[arrow.start].append(arrow.end)
    waits = {part_id: len(starts) for part_id, starts in before.items()}
    ready = [part_id for part_id, count in waits.items() if not count]
    columns = dict.fromkeys(graph.parts, 0)
    for part_id in ready:  # grows as it goes
        for end in after[part_id]:
            columns[end] = max(columns[end], columns[part_id] + 1)
            waits[end] -= 1
            if not waits[end]:
                ready.append(end)
    for part_id in reversed(ready):
        if not before[part_id] and after[part_id]:
            columns[part_id] = min(columns[end] for end in after[part_id]) - 1
    return columns


def _chain(arrow: Arrow, places: Mapping[str, _Place], columns: Mapping[str, int]) -> list[_Place]:
    """Return the places that an arrow goes through, one in each column."""
    between = range(columns[arrow.start] + 1, columns[arrow.end])
    return [places[arrow.start], *(_Place(None, column, 0.0, BENT) for column in between), places[arrow.end]]


def _ordered(places: Mapping[str, _Place], chains: Mapping[Arrow, Sequence[_Place]]) -> list[list[_Place]]:
    """Return each column's places from top to bottom, so that few arrows cross."""
    count = max((place.column for place in places.values()), default=-1) + 1
    order: list[list[_Place]] = [[] for _ in range(count)]
    for place in [*places.values(), *(place for chain in chains.values() for place in chain[1:-1])]:
        order[place.column].append(place)
    links = [pair for chain in chains.values() for pair in itertools.pairwise(chain)]
    left: dict[int, list[_Place]] = {}
    right: dict[int, list[_Place]] = {}
    for start, end in links:
        left.setdefault(id(end), []).append(start)
        right.setdefault(id(start), []).append(end)
    best, fewest = [list(column) for column in order], _crossings(order, right)
    for sweep in range(SWEEPS):
        neighbours, numbers = (left, range(1, count)) if sweep % 2 == 0 else (right, range(count - 2, -1, -1))
        for number in numbers:
            beside = number - 1 if sweep % 2 == 0 else number + 1
            at = {id(place): i for i, place in enumerate(order[beside])}
            now = {id(place): i for i, place in enumerate(order[number])}

            def centre(place: _Place, at: dict[int, int] = at, now: dict[int, int] = now) -> float:
                mine = [at[id(other)] for other in neighbours.get(id(place), ())]  # noqa: B023
                return sum(mine) / len(mine) if mine else float(now[id(place)])

            order[number].sort(key=centre)
        crossings = _crossings(order, right)
        if crossings < fewest:
            best, fewest = [list(column) for column in order], crossings
    return best


def _crossings(order: Sequence[Sequence[_Place]], right: Mapping[int, Sequence[_Place]]) -> int:
    """Return how many pairs of arrows cross between neighbouring columns."""
    crossed = 0
    for here, there in itertools.pairwise(order):
        at = {id(place): i for i, place in enumerate(there)}
        ends = [sorted(at[id(end)] for end in right.get(id(place), ())) for place in here]
        seen: list[int] = []
        for some in ends:
            crossed += sum(1 for end in some for other in seen if other > end)
            seen += some
    return crossed


def _lie(
    order: Sequence[Sequence[_Place]], chains: Mapping[Arrow, Sequence[_Place]], form: _Form, leaving: Sequence[int]
) -> list[float]:
    """Give every place its pixels: columns beside each other, places as near to their neighbours' height as fits.

    Args:
        leaving: the bands that arrows leave for others.

    Returns:
        The height at which each of these goes along, below its band.
    """
    bands: list[list[Sequence[_Place]]] = [[] for _ in range(form.band_of(max(0, len(order) - 1)) + 1)]
    for number, column in enumerate(order):
        bands[form.band_of(number)].append(column)
    # Columns of all bands lie below each other, so that between them ways lead through all of them.
    x = MARGIN
    for grid in itertools.zip_longest(*bands, fillvalue=()):
        width = max((place.width for column in grid for place in column), default=0.0)
        for column in grid:
            y = MARGIN
            for place in column:
                place.x, place.y = x, y
                if place.part is None:
                    place.width = width
                y += place.height + GAP_Y
        x += width + form.gap
    near: dict[int, list[_Place]] = {}
    for chain in chains.values():
        for start, end in itertools.pairwise(chain):
            near.setdefault(id(start), []).append(end)
            near.setdefault(id(end), []).append(start)
    lanes = [0.0] * len(leaving)
    begin = MARGIN
    for number, band in enumerate(bands):
        for sweep in range(SWEEPS):
            for column in band if sweep % 2 == 0 else reversed(band):
                _settle(column, near)
        own = [i for i, of in enumerate(leaving) if of == number]
        begin = _put(band, begin)
        for rank, i in enumerate(own):
            lanes[i] = begin + LANE * (1 + rank % LANES)
        begin += LANE * (1 + min(len(own), LANES)) + GAP_Y
    return lanes


def _put(band: Sequence[Sequence[_Place]], begin: float) -> float:
    """Move a band to where it begins; return where it ends."""
    top = min((place.y for column in band for place in column), default=begin)
    for place in itertools.chain.from_iterable(band):
        place.y += begin - top
    return max((place.y + place.height for column in band for place in column), default=begin)


def _settle(column: Sequence[_Place], near: Mapping[int, Sequence[_Place]]) -> None:
    """Move a column's places to the mean height of their neighbours, in their order, none over another.

    What would overlap becomes a block, which lies at the mean of what its places want (as isotonic regression does).
    """
    blocks: list[tuple[float, int, list[_Place], float]] = []  # sum of wishes, count, places, height
    for place in column:
        others = near.get(id(place), ())
        wish = sum(other.middle for other in others) / len(others) - place.height / 2 if others else place.y
        block = (wish, 1, [place], place.height + GAP_Y)
        while blocks and blocks[-1][0] / blocks[-1][1] + blocks[-1][3] > block[0] / block[1]:
            total, count, some, height = blocks.pop()
            block = (total + block[0] - block[1] * height, count + block[1], some + block[2], height + block[3])
        blocks.append(block)
    for total, count, some, _ in blocks:
        y = total / count
        for place in some:
            place.y = y
            y += place.height + GAP_Y
