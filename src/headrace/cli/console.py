"""The output of commands: tables for a terminal, one-line summaries, progress."""

from __future__ import annotations

import codecs
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import RLock
from time import monotonic
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from headrace.cli.ascii import spelled
from headrace.event_log import event
from headrace.inspect.messages import plain, to_json
from headrace.inspect.topics import iso_time
from headrace.pipeline.app import App
from headrace.plain_values import beyond, cast_texts, is_bytes, texts
from headrace.row_tables import cell

GAP = 3
READABLE = 12
IN_ONE_PIECE = frozenset({"last", "hash", "position", "offsets", "began", "created"})
logger = logging.getLogger("headrace")


class Talk(Console):
    """Standard error, on which several threads print, above a line that is drawn anew.

    Rich moves to the beginning of such a line by what was drawn when an event was laid out, not by what is drawn when
    it is written: one that is drawn for the first time in between would be torn. So both are done under one lock.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True)
        self.whole = RLock()

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and let nobody else print meanwhile."""
        with self.whole:
            super().print(*objects, **options)


class DrawnLine(Live):
    """A line that is drawn anew below what is printed, and is gone at the end."""

    def __init__(self, console: Talk, **options: Any) -> None:
        super().__init__(console=console, transient=True, **options)
        self._lock = console.whole  # the one lock: two would be taken in either order


talk = Talk()


def report(message: str) -> None:
    """Print a line on standard error as it is."""
    talk.print(message, highlight=False, markup=False, soft_wrap=True)


def print_utf8(text: memoryview, *, flush: bool = False) -> None:
    """Write bytes of UTF-8 to standard output: as they are, unless it has another encoding."""
    encoding = sys.stdout.encoding
    if encoding and codecs.lookup(encoding).name == "utf-8":
        sys.stdout.flush()
        sys.stdout.buffer.write(text)
    else:
        sys.stdout.write(str(text, "utf-8"))
    if flush:
        sys.stdout.flush()


def print_result(result: object, line: str, *, as_json: bool) -> None:
    """Print a result: JSON on standard output, or a line about it on standard error."""
    if as_json:
        print(to_json(result))
    else:
        report(line)


def print_rows(
    found: list[dict[str, Any]],
    *,
    as_json: bool,
    title: str | None = None,
    short: Callable[[Any], dict[str, Any]] = dict,
    wide: bool = False,
) -> None:
    """Print rows on standard output: as JSON, or in a table.

    Args:
        short: makes a row as it fits a terminal of 80 columns.
        wide: whole rows on a terminal too.
    """
    if as_json:
        print(to_json(found))
    else:
        print_table(found, title=title, short=short, wide=wide)


def print_values(values: Mapping[str, Any], *, title: str, wide: bool = False) -> None:
    """Print names and values in a table, a line each."""
    found = [{"name": name, "value": value} for name, value in values.items()]
    print_table(found, title=title, wide=wide, text=_whole)


def short_topic(info: dict[str, Any]) -> dict[str, Any]:
    """Return a topic's row as it fits a terminal."""
    offsets = "" if info["last_offset"] is None else f"{info['first_offset']}–{info['last_offset']}"
    size = "" if info["bytes"] is None else decimal(info["bytes"])
    row = {"topic": info["topic"], "rows": info["rows"], "size": size, "offsets": offsets}
    row["last"] = short_time(info["last_ts"])
    return {**row, "by": info["pipeline"] or "others"} if "pipeline" in info else row


def short_model(row: dict[str, Any]) -> dict[str, Any]:
    """Return a model's row as it fits a terminal."""
    names = ("position", "rows", "pending", "predicted", "rejected")
    name = f"{row['model']} (diverged)" if row["diverged"] else row["model"]
    short = {"model": name, "v": row["version"], **{name: row[name] for name in names}}
    return {**short, "hash": short_hash(row)}


def short_version(about: dict[str, Any]) -> dict[str, Any]:
    """Return a version's row as it fits a terminal."""
    kept = "now" if about["current"] else "yes" if about["kept"] else "no"
    row = {"v": about["version"], "from": about["parent"] or "", "rows": about["rows"], "hash": short_hash(about)}
    row |= {"kept": kept, "tags": ", ".join(about["tags"]), "began": short_time(iso_time(about["ts_us"]))[:16]}
    return {**row, "reason": about["reason"]}


def short_key(row: dict[str, Any]) -> dict[str, Any]:
    """Return a key's row as it fits a terminal."""
    return {**row, "scopes": ", ".join(row["scopes"]), "created": short_time(row["created"])}


def short_time(iso: str | None) -> str:
    """Return a time to the second, without its zone, which is UTC.

    >>> short_time("2026-11-29T15:04:19.696+00:00")
    '2026-11-29 15:04:19'
    """
    return (iso or "")[:19].replace("T", " ")


def short_hash(row: dict[str, Any]) -> str:
    """Return the beginning of a state's hash, or why there is none.

    >>> short_hash({"hash": None, "rows": 0}), short_hash({"hash": "4e6084efc4c2", "rows": 9})
    ('nothing learned', '4e6084ef')
    """
    return str(row["hash"])[:8] if row["hash"] else no_hash(row)


def no_hash(row: dict[str, Any]) -> str:
    """Return why a model or a version has no hash: a large state takes long to hash."""
    return "at its next checkpoint" if row["rows"] else "nothing learned"


class RunningLine:
    """What a pipeline does now, in one line of the terminal, however long the names are; a bar for a first snapshot."""

    def __init__(self, pipeline: App) -> None:
        self._pipeline = pipeline
        figures = TextColumn("{task.fields[figures]}", markup=False)
        name = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        shown = (BarColumn(12), figures, TextColumn("{task.description}", style="dim", markup=False, table_column=name))
        self._bar = Progress(*shown, console=talk, expand=True)
        self._task = self._bar.add_task("", figures="")
        self._tables: tuple[str, ...] = ()

    def __call__(self) -> RenderableType:
        """Return it as it is now."""
        running, reading = self._pipeline.running, self._pipeline.reading
        if running is None and reading is not None:
            return self._read(*reading)
        if running is None:
            line = f"{self._pipeline.starting} …"
        else:
            captured = sum(running.captured.values())
            line = f"{captured:,} rows captured, {running.learned:,} learned · {running.status}"
        # Its own words for wrapping: else it takes those of the event that is printed above it, and jumps.
        return Text(line, style="dim", no_wrap=True, overflow="ellipsis")

    def _read(self, table: str, rows: int, estimated: int) -> RenderableType:
        """Return the bar: how much of all tables was read, how fast, and the time left, where that is known."""
        task, tables = self._bar.tasks[0], {**self._pipeline.tables_read, table: (rows, estimated)}
        if self._tables != tuple(tables):
            self._tables = tuple(tables)
            self._bar.reset(self._task)
        place = self._tables.index(table)
        # Those that were read have what they had, whatever was estimated.
        done = sum(n for n, _ in tables.values())
        coming = sum(max(0, guess - n) for n, guess in list(tables.values())[place:])
        task.total = done + coming if coming else None
        self._bar.update(self._task, completed=done, description=table)
        figures = [f"{done:,}/{done + coming:,} rows" if coming else f"{done:,} rows"]
        if len(tables) > 1:
            figures.insert(0, f"{place}/{len(tables)} tables")
        if task.speed:
            figures.append(f"{task.speed:,.0f} rows/s")
        if task.time_remaining is not None:
            figures.append(f"{timedelta(seconds=int(task.time_remaining))} left")
        self._bar.update(self._task, figures=", ".join(figures))
        return self._bar.get_renderable()


def model_line(model: dict[str, Any]) -> str:
    parts = [f"{model['model']} v{model['version']}", f"{model['rows']} rows learned in {model['cuts']} cuts"]
    parts += [f"{model['pending']} pending", f"{model['predicted']} predicted"]
    parts += [f"{model['rejected']} to dead letters"] if model["rejected"] else []
    parts += [f"{model['ignored']} updates and deletes of learned rows ignored"] if model["ignored"] else []
    return ", ".join(parts)


# -- tables -----------------------------------------------------------------------------------------------------------


def print_table(
    found: list[dict[str, Any]],
    *,
    columns: list[str] | None = None,
    title: str | None = None,
    short: Callable[[Any], dict[str, Any]] = dict,
    wide: bool = False,
    text: Callable[[Any], str] = cell,
) -> None:
    """Print rows on standard output: laid out for people on a terminal, for programs where it is a file or a pipe.

    For programs it is the text format of PostgreSQL's COPY with a header: whole values, a line for each row, tabs
    between columns, ``\\N`` for null.

    Args:
        columns: their names, where there may be no row.
        short: makes a row as it fits a terminal.
        wide: whole rows, each in one line however long, on a terminal too.
        text: makes a value as a terminal shows it.
    """
    if not sys.stdout.isatty():
        names = columns or (list(found[0]) if found else [])
        for line in copy_lines([names, *([row.get(name) for name in names] for row in found)] if names else []):
            print(line)
        return
    shown = found if wide else [short(row) for row in found]
    names = list(shown[0]) if shown else columns or []
    if not names:
        report("nothing there")
        return
    console = Console()
    table, widths = _laid_out(shown, names, title, whole=_one_line if wide else text)
    if wide:
        console = Console(width=max(console.width, sum(widths.whole)))
    elif sum(widths.whole) > console.width < sum(widths.least):
        _print_records(console, shown, title)
        return
    with console.capture() as captured:
        console.print(table)
    sys.stdout.write(spelled(captured.get(), sys.stdout.encoding))


def copy_lines(rows: Iterable[list[Any]]) -> Iterator[str]:
    r"""Yield rows in the text format of PostgreSQL's COPY.

    >>> list(copy_lines([["a", None, 1.5], ["x\ty", [1, "é"], True]]))
    ['a\t\\N\t1.5', 'x\\ty\t[1, "é"]\ttrue']
    """
    for row in rows:
        yield "\t".join("\\N" if value is None else _escaped(_text(value)) for value in row)


def _text(value: Any) -> str:
    """Return a whole value: what JSON writes as text is itself."""
    value = plain(value)
    return value if isinstance(value, str) else to_json(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


@dataclass
class _Widths:
    """Characters that each column takes, with what parts it from the next: whole, and where it takes several lines."""

    whole: list[int] = field(default_factory=list)
    least: list[int] = field(default_factory=list)


def _laid_out(
    found: list[dict[str, Any]], names: list[str], title: str | None, *, whole: Callable[[Any], str]
) -> tuple[Table, _Widths]:
    """Return a table, and how wide it is."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    widths = _Widths()
    for name in names:
        texts = [whole(row.get(name)) for row in found]
        numbers = bool(found) and all(isinstance(row.get(name), int | float) for row in found)
        width = max(map(cell_len, (name, *texts)))
        # What people compare or copy stays in one piece; names and texts may take several lines.
        piece = numbers or width <= READABLE or name in IN_ONE_PIECE
        widths.whole.append(width + GAP)
        widths.least.append((width if piece else READABLE) + GAP)
        table.add_column(name, justify="right" if numbers else "left", no_wrap=piece, overflow="fold")
    for row in found:
        table.add_row(*(Text(whole(row.get(name))) for name in names))
    return table, widths


def _whole(value: Any) -> str:
    return "–" if value is None else _text(value)


def _one_line(value: Any) -> str:
    return _escaped(_whole(value))


def _print_records(console: Console, found: list[dict[str, Any]], title: str | None) -> None:
    """Print rows one below the other, a line for each value, as psql's expanded display does."""
    if title:
        console.print(Text(title, style="italic"), soft_wrap=True)
    for number, row in enumerate(found, 1):
        console.print(Text(f"row {number}", style="dim"))
        for name, value in row.items():
            text = Text.assemble((f"  {name} ", "bold"), spelled(cell(value), sys.stdout.encoding))
            console.print(text, soft_wrap=True)


def print_csv(table: pa.Table) -> None:
    import pyarrow.csv

    columns = [_csv_cells(column, field.type) for column, field in zip(table.columns, table.schema, strict=True)]
    pyarrow.csv.write_csv(pa.Table.from_arrays(columns, names=table.column_names), sys.stdout.buffer)


def _is_foreign_to_csv(kind: pa.DataType) -> bool:
    return bool(
        (pa.types.is_nested(kind) and not pa.types.is_dictionary(kind))
        or isinstance(kind, pa.BaseExtensionType)
        or pa.types.is_interval(kind)
        or pa.types.is_run_end_encoded(kind)
        or pa.types.is_string_view(kind)
        or is_bytes(kind)
    )


def _csv_cells(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Return a column as Arrow's CSV writer takes it: what it has no text for comes as PostgreSQL prints it."""
    if _is_foreign_to_csv(kind):
        return pa.array(texts(column), pa.string())
    if not pa.types.is_temporal(kind) or not beyond(column):
        return column
    return pa.chunked_array([cast_texts(chunk) for chunk in column.chunks])


def replay_progress() -> Callable[[str, int, int], None]:
    """Show how far a replay has come: on a terminal in one line that changes, else in a line now and then."""
    shown = DrawnLine(talk, auto_refresh=False)
    every = 0.25 if talk.is_interactive else 5.0
    said = monotonic()

    def on_step(task: str, step: int, last: int) -> None:
        nonlocal said
        now = monotonic()
        if now - said >= every:
            said = now
            text = Text(f"{task}: step {step:,} of {last:,}")
            if not talk.is_interactive:
                logger.info("%s", text.plain, extra=event("replaying", task=task, step=step, last=last))
                return
            if not shown.is_started:
                shown.start()
            shown.update(text, refresh=True)
        if step == last and shown.is_started:
            shown.stop()

    return on_step


@contextmanager
def copy_progress(*, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, where that is a terminal."""
    columns = (TextColumn("copying"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn())
    with Progress(*columns, console=talk, transient=True, disable=not (show and talk.is_interactive)) as bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
