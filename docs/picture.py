"""Draw docs/pipeline.svg: the Iris pipeline, from committed rows to predictions.

python docs/picture.py           # write it
python docs/picture.py --check   # fail when the file is not what this would write
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

TARGET = Path(__file__).parent / "pipeline.svg"
WIDTH, HEIGHT = 1160, 600

# Its own background: the page behind may be light or dark.
PAPER, EDGE, PANEL, LANE = "#fbfaf6", "#ddd7c8", "#ffffff", "#f1eee5"
INK, SOFT, FLOW = "#22303c", "#5c6873", "#2f6f8f"
TRAIN, TEST, STEPS = "#3d7ea6", "#8d99a6", "#c9c2b0"
CLASSES = ("#d9822b", "#5a9e6f", "#8a63a8")

SANS = "font-family=\"'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif\""
MONO = "font-family=\"ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace\""

# One transaction after another, in commit order: which table, and how many rows.
COMMITS = (("train", 1), ("test", 3), ("train", 4), ("train", 3), ("test", 3))
CUT_ROWS = 4
LOG_X, LOG_WIDTH = 478, 370
CELL, CELLS_X = 20, LOG_X + 36

Parts = list[str]


def text(
    x: float, y: float, words: str, *, size: float = 14, fill: str = INK, anchor: str = "middle", extra: str = ""
) -> str:
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"'
    return f"<text {place} {extra or SANS}>{escape(words)}</text>"


def title(x: float, y: float, words: str) -> str:
    return text(x, y, words, size=17, extra=f'font-weight="600" {SANS}')


def box(
    x: float, y: float, width: float, height: float, *, fill: str = PANEL, stroke: str = EDGE, radius: float = 10
) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
    )


def arrow(path: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="6 5"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{FLOW}" stroke-width="2.2"{dash} marker-end="url(#head)"/>'


def cell(x: float, y: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{CELL - 4}" height="{CELL - 4}" rx="3.5" fill="{fill}"/>'


def columns(table: str) -> list[int]:
    """Places of a table's rows in commit order."""
    places, at = [], 0
    for name, rows in COMMITS:
        places += range(at, at + rows) if name == table else ()
        at += rows
    return places


def database() -> Parts:
    x, y, width, height, rim = 40, 128, 190, 206, 17
    side = f"M{x} {y} v{height} a{width / 2} {rim} 0 0 0 {width} 0 v-{height}"
    line = f'stroke="{EDGE}" stroke-width="1.5"'
    parts = [
        f'<path d="{side}" fill="{PANEL}" {line}/>',
        f'<ellipse cx="{x + width / 2}" cy="{y}" rx="{width / 2}" ry="{rim}" fill="{LANE}" {line}/>',
        title(x + width / 2, y - 32, "PostgreSQL"),
    ]
    for top, name, fill, rows in ((168, "iris_train", TRAIN, 8), (262, "iris_test", TEST, 6)):
        parts.append(text(x + width / 2, top, name, size=13, extra=MONO))
        for i in range(rows):
            parts.append(cell(x + 57 + 20 * (i % 4), top + 12 + 20 * (i // 4), fill))
    return parts


def capture() -> Parts:
    x, y = 292, 158
    words = ("a replication slot", "pgoutput, binary", "bytes to Arrow,", "column by column")
    parts = [box(x, y, 136, 146), title(x + 68, y + 32, "capture")]
    parts += [text(x + 68, y + 60 + 20 * i, line, size=13, fill=SOFT) for i, line in enumerate(words)]
    return parts


def log() -> Parts:
    width = LOG_WIDTH
    parts = [box(LOG_X, 68, width, 420), title(LOG_X + width / 2, 50, "the log: one SQLite file")]
    lanes: Sequence[tuple[int, str, Sequence[tuple[int, str]]]] = (
        (94, "flink.public.iris_train", [(at, TRAIN) for at in columns("train")]),
        (164, "flink.public.iris_test", [(at, TEST) for at in columns("test")]),
        (234, "iris_predictions", list(zip(columns("test"), answers(), strict=True))),
        (304, "__headrace.iris.steps", [(3, STEPS), (7, STEPS), (10, STEPS), (13, STEPS)]),
    )
    for y, name, cells in lanes:
        parts.append(text(LOG_X + 26, y, name, size=12.5, anchor="start", extra=MONO))
        parts.append(box(LOG_X + 24, y + 8, width - 48, CELL + 14, fill=LANE, stroke=LANE, radius=7))
        parts += [cell(CELLS_X + CELL * at, y + 17, fill) for at, fill in cells]
    parts.append(text(LOG_X + LOG_WIDTH - 26, 94, "commit order →", size=12, fill=SOFT, anchor="end"))
    train = columns("train")
    for last in train[CUT_ROWS - 1 :: CUT_ROWS]:
        x = CELLS_X + CELL * (last + 1) - 2
        parts.append(f'<path d="M{x} 100 v38" stroke="{INK}" stroke-width="2" stroke-dasharray="3 3"/>')
        parts.append(text(x, 151, "cut", size=11, fill=SOFT))
    return parts + records()


def answers() -> list[str]:
    """The same three rows asked twice: two of them are answered otherwise after the cuts between."""
    a, b, c = CLASSES
    return [a, c, c, a, b, c]


def records() -> Parts:
    parts = [text(LOG_X + 26, 376, "records", size=12.5, anchor="start", extra=MONO)]
    at = LOG_X + 24.0
    for words, width in (("source position", 116), ("task position", 104), ("checkpoint", 90)):
        parts += [box(at, 386, width, 30, fill=LANE, stroke=LANE, radius=15), text(at + width / 2, 406, words, size=13)]
        at += width + 6
    y, half = 436, f"h{LOG_WIDTH / 2 - 42:g}"
    brace = f"M{LOG_X + 24} {y} q0 9 9 9 {half} q9 0 9 9 q0 -9 9 -9 {half} q9 0 9 -9"
    parts.append(f'<path d="{brace}" fill="none" stroke="{SOFT}" stroke-width="1.5"/>')
    parts.append(text(LOG_X + LOG_WIDTH / 2, y + 37, "written together, in one transaction", size=13, fill=SOFT))
    return parts


def step() -> Parts:
    x, y = 912, 106
    parts = [box(x, y, 208, 318), title(x + 104, y + 34, "step")]
    for i, (verb, words) in enumerate(
        (("predict", "the rows that ask"), ("cut", "every n rows"), ("learn", "the rows of a cut"))
    ):
        top = y + 54 + 34 * i
        parts.append(text(x + 20, top + 14, verb, extra=f'font-weight="600" {SANS}', anchor="start"))
        parts.append(text(x + 84, top + 14, words, size=13, fill=SOFT, anchor="start"))
    parts.append(box(x + 20, y + 164, 168, 104, fill=LANE, stroke=LANE))
    for (cx, cy), fill in zip(((56, 222), (104, 198), (146, 232)), CLASSES, strict=True):
        for dx, dy in ((-15, 5), (-7, -11), (4, 9), (12, -6), (17, 7), (-3, 17)):
            parts.append(f'<circle cx="{x + cx + dx}" cy="{y + cy + dy}" r="3.6" fill="{fill}" opacity="0.5"/>')
        parts.append(
            f'<path d="M{x + cx - 6} {y + cy} h12 M{x + cx} {y + cy - 6} v12" stroke="{fill}" stroke-width="3.4"/>'
        )
    parts.append(text(x + 104, y + 288, "the model «species»", size=13, fill=SOFT))
    return parts


def readers() -> Parts:
    commands = ("headrace topics cat", "headrace sql", "app.topic(…).read()", "headrace verify")
    parts, at = [], 376.0
    for words in commands:
        width = 7.6 * len(words) + 24
        parts += [box(at, 536, width, 32, radius=16), text(at + width / 2, 557, words, size=12, extra=MONO)]
        at += width + 10
    parts.append(text(364, 557, "other processes read", size=13, fill=SOFT, anchor="end"))
    return parts


def flows() -> Parts:
    right = LOG_X + LOG_WIDTH
    return [
        arrow("M232 231 h54"),
        text(259, 219, "commits", size=12, fill=SOFT),
        arrow(f"M430 206 C455 206 450 119 {LOG_X + 18} 119"),
        arrow(f"M430 240 C455 240 450 189 {LOG_X + 18} 189"),
        arrow(f"M{right - 22} 119 C{right + 30} 119 {right + 24} 160 906 168"),
        arrow(f"M{right - 22} 189 H906"),
        arrow(f"M910 259 H{right - 18}"),
        arrow(f"M910 329 H{right - 18}"),
        text((right + 912) / 2 + 4, 116, "reads", size=12, fill=SOFT),
        text((right + 912) / 2 + 4, 250, "writes", size=12, fill=SOFT),
        arrow(f"M910 401 H{right - 18}"),
        arrow(f"M{LOG_X - 4} 401 H150 Q135 401 135 386 V364", dashed=True),
        text(300, 393, "acknowledged after the commit", size=12, fill=SOFT),
        arrow(f"M{LOG_X + LOG_WIDTH / 2} 490 V528"),
    ]


def picture() -> str:
    head = f'<path d="M0 0 L9 4.5 L0 9 z" fill="{FLOW}"/>'
    label = "Rows committed in PostgreSQL are captured into topics of one log; a step predicts, cuts and learns."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">',
        f'<defs><marker id="head" markerWidth="9" markerHeight="9" refX="7" refY="4.5" orient="auto" '
        f'markerUnits="userSpaceOnUse">{head}</marker></defs>',
        box(1, 1, WIDTH - 2, HEIGHT - 2, fill=PAPER, radius=16),
        *database(),
        *capture(),
        *log(),
        *step(),
        *readers(),
        *flows(),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def main(arguments: Sequence[str]) -> int:
    drawn = picture()
    if "--check" in arguments:
        if not TARGET.exists() or TARGET.read_text() != drawn:
            print(f"{TARGET} is stale: run python {Path(__file__).name}", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
