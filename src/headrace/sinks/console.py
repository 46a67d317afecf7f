"""Results on standard output: tables for people in a terminal, one JSON object a line for programs."""

from __future__ import annotations

import codecs
import json
import sys
from dataclasses import dataclass
from typing import TextIO

from headrace import plain_values
from headrace.batch import Batch
from headrace.errors import DeclarationError, SinkUnavailable
from headrace.faults import fault
from headrace.sinks.base import SinkBatch, SinkContext, SinkSpec
from headrace.sinks.json_row import json_rows, sent_rows

FORMATS = ("table", "lines")


@dataclass(frozen=True, slots=True)
class ConsoleSpec(SinkSpec):
    """Standard output, as declared.

    Attributes:
        format: ``"table"``, ``"lines"``, or None: as suits what standard output is.
    """

    format: str | None = None
    kind = "console"
    key: tuple[str, ...] = ()
    where = "standard output"

    def __post_init__(self) -> None:
        if self.format not in (None, *FORMATS):
            raise DeclarationError(f"to_console: format={self.format!r}", advice='Give "table" or "lines".')

    def sink(self, context: SinkContext) -> ConsoleSink:
        """See `SinkSpec.sink`."""
        return ConsoleSink(self, context)


class ConsoleSink:
    """Standard output; see `headrace.sinks.base.Sink`. A row is printed again after a crash at the wrong moment."""

    rows = 1_000
    linger = 0.0

    def __init__(self, spec: ConsoleSpec, context: SinkContext, *, file: TextIO | None = None) -> None:
        self.spec = spec
        self.context = context
        self._file = file

    def open(self) -> int:
        """See `Sink.open`."""
        return self.context.position

    def deliver(self, part: SinkBatch) -> None:
        """See `Sink.deliver`."""
        if part.batch.num_rows:
            file = self._file or sys.stdout
            text = self._text(part, file)
            try:
                file.write(text)
                file.flush()
            except (OSError, ValueError) as error:
                raise SinkUnavailable(f"standard output cannot be written: {error}") from error
        fault("sink.written")
        self.context.keep(part.end)
        fault("sink.committed")

    def _text(self, part: SinkBatch, file: TextIO) -> str:
        """Return the text to print, in letters that standard output has."""
        encoding = getattr(file, "encoding", None) or "utf-8"
        people = file.isatty() if self.spec.format is None else self.spec.format == "table"
        if people:
            return _table(part.topic, part.batch, file).encode(encoding, "backslashreplace").decode(encoding)
        lines = "".join(f"{row.decode()}\n" for row in json_rows(part.batch))
        # As JSON writes a letter in others.
        return lines.encode(encoding, "headrace-json").decode(encoding)

    def cancel(self) -> None:
        """Nothing can be done about a reader that does not read."""

    def close(self) -> None:
        """Standard output stays open."""


def _table(title: str, batch: Batch, file: TextIO) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Texts, so that no value is taken for markup.
    table = Table(title=Text(title), box=SIMPLE_HEAD, title_justify="left")
    for name in batch.column_names:
        table.add_column(Text(name))
    for row in sent_rows(batch):
        table.add_row(*(Text(_cell(row.get(name))) for name in batch.column_names))
    console = Console(file=file)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error("headrace-json", _escaped)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else plain_values.repr_text(value)
