"""Rows as lines of comma-separated values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.formats.base import FIRST, Decoded, Preceding
from headrace.formats.column_text import plain_text
from headrace.formats.flat_values import ParsedColumns, decode_values, encode_texts, utf8
from headrace.formats.json_keys import check_key_format
from headrace.formats.json_parse import Bad
from headrace.formats.json_text import in_quotes, unwrapped
from headrace.plain_values import is_text
from headrace.wire import Encoded, WireMessages


@dataclass(frozen=True, slots=True)
class CsvFormat:
    """One line of CSV for each row (RFC 4180, UTF-8); what an event was travels in headers.

    A null is an empty field, an empty text is ``""``. Values are written as `formats.coerce` reads them: dates and
    instants in ISO form, bytes in base64, lists and structs as JSON.

    Args:
        delimiter: between fields.
        header: every message begins with a line of the columns' names; reading takes the names from it.
        columns: names of the fields where neither a header nor a schema names them; ``f0``, ``f1``, … else.
        key: how keys are written (`formats.json_keys`).

    >>> batch = Batch.of({"id": [7], "name": ['a "b", c']})
    >>> CsvFormat().encode("t", batch).values
    [b'7,"a ""b"", c"']
    """

    delimiter: str = ","
    header: bool = False
    columns: tuple[str, ...] = ()
    key: str | None = None

    def __post_init__(self) -> None:
        check_key_format(self.key)
        if len(self.delimiter.encode()) != 1 or self.delimiter in '"\r\n':
            raise DeclarationError(
                f"«{self.delimiter}» cannot stand between fields", advice="Choose one ASCII character."
            )

    @property
    def name(self) -> str:
        return "csv"

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """A line for every row; deletes and truncates have no value."""
        rows = batch.rows
        fields = [_csv_field(array, self.delimiter) for array in rows.columns]
        text = pa.large_string()
        if fields:
            lines = pc.binary_join_element_wise(
                *fields, pa.scalar(self.delimiter, text), null_handling="replace", null_replacement=""
            )
        else:
            lines = pa.repeat(pa.scalar("", text), batch.num_rows)
        if self.header:
            names = [_csv_field(pa.array([name]), self.delimiter)[0].as_py() for name in rows.schema.names]
            head = pa.scalar(self.delimiter.join(names) + "\n", text)
            lines = pc.binary_join_element_wise(head, lines, pa.scalar("", text))
        return encode_texts(topic, batch, lines, self.key or "json")

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """Rows of the lines; a message may hold several. Without a schema every column is text."""
        return decode_values(messages, schema, preceding, self.key, lambda values: self._parse(values, schema))

    def _parse(self, values: Sequence[bytes], schema: pa.Schema | None) -> tuple[list[ParsedColumns], Bad]:
        texts, bad = utf8(values)
        parts: dict[tuple[str, ...], tuple[list[int], list[list[str | None]]]] = {}
        for i, text in texts:
            try:
                lines = _csv_lines(text, self.delimiter)
                names, lines = self._names(lines, schema)
            except ValueError as error:
                bad.append((i, str(error)))
                continue
            wrong = next((line for line in lines if len(line) != len(names)), None)
            if wrong is not None:
                bad.append((i, f"{len(wrong)} fields where {len(names)} are expected"))
                continue
            where, found = parts.setdefault(names, ([], []))
            where += [i] * len(lines)
            found += lines
        done = []
        for names, (where, found) in parts.items():
            arrays = [pa.array(column, pa.string()) for column in zip(*found, strict=True)]
            columns = dict(zip(names, arrays, strict=True)) if arrays else {}
            done.append((columns, np.array(where, np.int64)))
        return done, bad

    def _names(
        self, lines: list[list[str | None]], schema: pa.Schema | None
    ) -> tuple[tuple[str, ...], list[list[str | None]]]:
        if self.header:
            if not lines:
                raise ValueError("no header line")
            names = tuple(name or "" for name in lines[0])
            if len(set(names)) < len(names):
                raise ValueError("two columns of one name in the header")
            return names, lines[1:]
        if self.columns:
            return self.columns, lines
        if schema is not None:
            return tuple(schema.names), lines
        return tuple(f"f{i}" for i in range(len(lines[0]) if lines else 0)), lines


def _csv_field(array: pa.Array, delimiter: str) -> pa.Array:
    """Texts of a column, quoted where they have to be; null where the value is."""
    plain = unwrapped(array)
    text = pa.large_string()
    texts = plain.cast(text) if is_text(plain.type) else plain_text(plain).cast(text)
    if pa.types.is_floating(plain.type):
        return pc.replace_substring(texts, '"', "")
    special = pc.match_substring_regex(texts, rf'["\r\n\x{ord(delimiter):02x}]|^$|^ | $')
    if not pc.any(special).as_py():
        return texts
    return pc.if_else(special, in_quotes(pc.replace_substring(texts, '"', '""')), texts)


def _csv_lines(text: str, delimiter: str) -> list[list[str | None]]:
    """Lines of fields; a field is null where it is empty and not quoted.

    Raises:
        ValueError: a quote that is not closed, or stands where it may not.

    >>> _csv_lines('1,"a ""b"" c"' + chr(10) + ',""', ",")
    [['1', 'a "b" c'], [None, '']]
    """
    lines: list[list[str | None]] = []
    fields: list[str | None] = []
    at, n = 0, len(text)
    while True:
        if text[at : at + 1] == '"':
            value, at = _quoted(text, at + 1)
            fields.append(value)
        else:
            end = min((p for p in (text.find(item, at) for item in (delimiter, "\n")) if p >= 0), default=n)
            bare = text[at:end].removesuffix("\r") if text[end : end + 1] != delimiter else text[at:end]
            if '"' in bare:
                inside = at + bare.index('"')
                raise ValueError(f"a quote inside a field that is not quoted, at character {inside}")
            fields.append(bare or None)
            at = end
        if text[at : at + 2] == "\r\n":
            at += 1
        if at >= n or text[at] == "\n":
            lines.append(fields)
            fields = []
            if at + 1 >= n:
                return lines
        elif text[at] != delimiter:
            raise ValueError(f"{text[at]!r} behind a quoted field, at character {at}")
        at += 1


def _quoted(text: str, at: int) -> tuple[str, int]:
    """A quoted field's value, and where it ends."""
    start, parts = at, []
    while True:
        end = text.find('"', at)
        if end < 0:
            raise ValueError(f"a quote at character {start - 1} that is not closed")
        parts.append(text[at:end])
        if text[end + 1 : end + 2] != '"':
            return '"'.join(parts), end + 1
        at = end + 2
