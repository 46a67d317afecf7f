"""Pictures that are made here, as SVG without a script: a line of time with a model's versions, and centres as dots."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from markupsafe import Markup

from headrace.ui.read.models import Mark, VersionLine
from headrace.units import time_text

WIDTH, HEIGHT, BAR, TOP = 1000.0, 76.0, 26.0, 26.0
NARROWEST = 2.0
LABEL = 34.0  # a span that is narrower has no number in it


def timeline_svg(
    model: str, versions: Sequence[VersionLine], marks: Sequence[Mark], link: Callable[..., str], *, until_us: int = 0
) -> Markup:
    """Return a line of time: spans of versions, and marks on them; "" where there is nothing to show.

    Args:
        link: gives the address of a page, of the parts of its path.
        until_us: where it ends, unless something came later.
    """
    times = [version.ts_us for version in versions] + [version.ended_us or 0 for version in versions]
    times = [ts_us for ts_us in [*times, until_us, *(mark.ts_us for mark in marks)] if ts_us]
    if not versions or not times:
        return Markup("")
    first, last = min(times), max(times)

    def x(ts_us: int) -> float:
        return 4 + (WIDTH - 8) * (max(ts_us, first) - first) / max(1, last - first)

    told = f"{len(versions)} versions from {time_text(first)} to {time_text(last)}, and {len(marks)} marks"
    parts = [f'<svg class="hr-time" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="group" aria-label="{told}">']
    for number, version in enumerate(reversed(versions)):
        start = x(version.ts_us)
        width = max(NARROWEST, x(version.ended_us or last) - start)
        title = html.escape(f"version {version.number}: {version.reason}, {time_text(version.ts_us)}")
        label = f'<text x="{start + 6:.1f}" y="{TOP + 18:g}">v{version.number}</text>' if width >= LABEL else ""
        address = html.escape(link("models", model, version.number))
        parts.append(
            f'<a href="{address}"><g class="span {"even" if number % 2 else "odd"}"><title>{title}</title>'
            f'<rect x="{start:.1f}" y="{TOP:g}" width="{width:.1f}" height="{BAR:g}"/>{label}</g></a>'
        )
    parts += [_mark(mark, x(mark.ts_us), link) for mark in marks if mark.kind != "version"]
    parts.append(f'<text class="end" x="4" y="{HEIGHT - 6:g}">{time_text(first)}</text>')
    parts.append(f'<text class="end last" x="{WIDTH - 4:g}" y="{HEIGHT - 6:g}">{time_text(last)}</text></svg>')
    return Markup("".join(parts))


def _mark(mark: Mark, x: float, link: Callable[..., str]) -> str:
    """Return a flag above the line."""
    title = html.escape(f"{mark.kind}: {mark.text}, {time_text(mark.ts_us)}")
    drawn = (
        f'<g class="mark {html.escape(mark.kind)}"><title>{title}</title>'
        f'<path d="M{x:.1f} {TOP + BAR:g}V6l7 5l-7 5"/></g>'
    )
    return f'<a href="{html.escape(link(*mark.parts))}">{drawn}</a>' if mark.parts else drawn
