"""The output of commands: tables for a terminal, one-line summaries, progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from headrace.inspect.messages import to_json
from headrace.inspect.topics import iso_time
from headrace.pipeline.app import App
from headrace.plain_values import beyond, cast_texts, is_bytes, texts
from headrace.row_tables import cell

talk = Console(stderr=True)


def report(message: str) -> None:
    """Print a line on standard error as it is."""
    talk.print(message, highlight=False, markup=False, soft_wrap=True)


def print_result(result: object, line: str, *, as_json: bool) -> None:
    """Print a result: JSON on standard output, or a line about it on standard error."""
    if as_json:
        print(to_json(result))
    else:
        report(line)


def print_rows(
    found: list[dict[str, Any]], *, as_json: bool, title: str | None = None, short: Callable[[Any], Any] = dict
) -> None:
    """Print rows on standard output: as JSON, or in a table.

    Args:
        short: makes a row as it fits a terminal.
    """
    if as_json:
        print(to_json(found))
    else:
        print_table([short(row) for row in found], title=title)


def print_values(values: Mapping[str, Any], *, title: str) -> None:
    """Print names and values in a table, a line each; the values as JSON."""
    print_table([{"": name, "value": to_json(value)} for name, value in values.items()], title=title)


def short_topic(info: dict[str, Any]) -> dict[str, Any]:
    """Return a topic's row as it fits a terminal."""
    last = (info["last_ts"] or "")[:19].replace("T", " ")
    offsets = "" if info["last_offset"] is None else f"{info['first_offset']}–{info['last_offset']}"
    size = "" if info["bytes"] is None else info["bytes"]
    row = {"topic": info["topic"], "rows": info["rows"], "bytes": size, "offsets": offsets, "last": last}
    if "pipeline" in info:
        row = {**row, "last": last[5:], "by": info["pipeline"] or "others"}
    return row


def short_model(row: dict[str, Any]) -> dict[str, Any]:
    """Return a model's row as it fits a terminal."""
    names = ("position", "rows", "pending", "predicted", "rejected")
    name = f"{row['model']} (diverged)" if row["diverged"] else row["model"]
    short = {"model": name, "v": row["version"], **{name: row[name] for name in names}}
    return {**short, "hash": (row["hash"] or "")[:8]}


def short_version(about: dict[str, Any]) -> dict[str, Any]:
    """Return a version's row as it fits a terminal."""
    kept = "now" if about["current"] else "yes" if about["kept"] else "no"
    row = {"v": about["version"], "from": about["parent"] or "", "rows": about["rows"], "position": about["position"]}
    row |= {"hash": (about["hash"] or "")[:8], "kept": kept, "tags": ", ".join(about["tags"])}
    return {**row, "began": f"{(iso_time(about['ts_us']) or '')[:19]} {about['reason']} ({about['by']})"}


def running_line(pipeline: App) -> Text:
    running = pipeline.running
    if running is None:
        return Text(f"{pipeline.starting} …", style="dim")
    captured = sum(running.captured.values())
    learned = sum(running[name].learned for name in running.models)
    return Text(f"{captured:,} rows captured, {learned:,} learned · {running.status}", style="dim")


def model_line(model: dict[str, Any]) -> str:
    parts = [f"{model['model']} v{model['version']}", f"{model['rows']} rows learned in {model['cuts']} cuts"]
    parts += [f"{model['pending']} pending", f"{model['predicted']} predicted"]
    parts += [f"{model['rejected']} to dead letters"] if model["rejected"] else []
    parts += [f"{model['ignored']} updates and deletes not learned"] if model["ignored"] else []
    return ", ".join(parts)


def print_table(found: list[dict[str, Any]], *, columns: list[str] | None = None, title: str | None = None) -> None:
    names = columns or (list(found[0]) if found else [])
    if not names:
        talk.print("nothing there")
        return
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in names:
        numeric = bool(found) and all(isinstance(row[name], int | float) for row in found)
        table.add_column(
            name,
            justify="right" if numeric else "left",
            no_wrap=name in ("topic", "model", "last", "hash"),
            overflow="fold",
        )
    for row in found:
        table.add_row(*(Text(cell(row[name])) for name in names))
    Console().print(table)


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
    shown = Live(console=talk, transient=True, auto_refresh=False)
    every = 0.25 if talk.is_terminal else 5.0
    said = monotonic()

    def on_step(task: str, step: int, last: int) -> None:
        nonlocal said
        now = monotonic()
        if now - said >= every:
            said = now
            text = Text(f"{task}: step {step:,} of {last:,}")
            if not talk.is_terminal:
                talk.print(text)
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
    with Progress(*columns, console=talk, transient=True, disable=not (show and talk.is_terminal)) as bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
