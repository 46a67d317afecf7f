"""Shapes of JSON messages, by their first bytes: rows, envelopes, either with a schema of Kafka Connect.

A topic may change in the middle, so each message is looked at, all of a batch in a few native calls. Only where the
first name of an object leaves a doubt (a pretty-printed envelope, a table whose first column is named ``op``) it is
parsed to see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats import connect, debezium, json_parse
from headrace.formats.json_parse import Lines

Codes = npt.NDArray[np.uint8]

ROW, ENVELOPE, CONNECT, SILENT = range(4)

_SCHEMA, _PAYLOAD = b'{"schema":', b',"payload":'
_DOUBTFUL = r'^\s*\{\s*"(before|after|source|op|ts_ms|ts_us|ts_ns|transaction|schema|payload|status)"\s*:'
_DOUBTFUL_BYTES = re.compile(_DOUBTFUL.encode())


def shapes(values: Sequence[bytes], lines: Lines) -> Codes:
    r"""Return the shape of each message; ``lines`` are all of them.

    >>> found = [b'{"id":1}', b'{"before":null,"after":{},"op":"c"}', b'{"op":"m","source":{},"message":{}}']
    >>> shapes(found, Lines(found)).tolist()
    [0, 1, 3]
    """
    codes = np.full(len(values), ROW, np.uint8)
    first = values[0][: values[0].find(b":") + 1]
    if len(first) > 3 and not _DOUBTFUL_BYTES.match(first) and lines.single and lines.begin_with(first):
        return codes
    array = pa.array(values, pa.large_binary())
    for prefix, code in (
        (b'{"before":{', ENVELOPE),
        (b'{"before":null,"after":', ENVELOPE),
        (b'{"schema":{"', CONNECT),
    ):
        codes[np.asarray(pc.starts_with(array, prefix))] = code
    if (codes != ROW).all():
        return codes
    doubts = np.asarray(pc.match_substring_regex(array, _DOUBTFUL)) & (codes == ROW)
    for i in np.flatnonzero(doubts).tolist():
        codes[i] = _of(values[i])
    return codes


def _of(value: bytes) -> int:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return ROW  # parsing it as one will say what is wrong
    if not isinstance(found, dict):
        return ROW
    if debezium.is_no_row(found):
        return SILENT
    if set(found) == {"schema", "payload"} and _is_schema(found["schema"]):
        return CONNECT
    rows = (found.get("before"), found.get("after"))
    if debezium.is_envelope(list(found)) and all(row is None or isinstance(row, dict) for row in rows):
        return ENVELOPE
    return ROW


def _is_schema(schema: Any) -> bool:
    return schema is None or (isinstance(schema, dict) and isinstance(schema.get("type"), str))


def runs(codes: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Ranges of equal codes.

    >>> list(runs(np.array([1, 1, 2])))
    [(0, 2), (2, 3)]
    """
    cuts = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), codes.size]
    yield from pairwise(cuts)


def share_a_schema(values: Sequence[bytes]) -> bool:
    """Return whether all messages begin with the same schema, written as Kafka Connect writes it.

    >>> share_a_schema([b'{"schema":{"type":"int32"},"payload":1}'] * 2), share_a_schema([b'{"id":1}'])
    (True, False)
    """
    prefix = _prefix(values[0])
    return prefix is not None and all(map(bytes.startswith, values, repeat(prefix)))


def payloads(values: Sequence[bytes]) -> Iterator[tuple[int, int, connect.Schema | None, list[bytes] | str]]:
    """Messages with a schema, in runs of one schema: (from, to, schema, payloads or what is wrong with them).

    The text of the schema is mostly the same for thousands of messages: it is compared, and parsed once.
    """
    at, n = 0, len(values)
    while at < n:
        prefix = _prefix(values[at])
        if prefix is None:
            yield at, at + 1, *_odd(values[at])
            at += 1
            continue
        same = np.fromiter(map(bytes.startswith, islice(values, at, n), repeat(prefix)), bool, n - at)
        end = n if same.all() else at + int(same.argmin())
        size = len(prefix)
        schema = connect.read_schema(prefix[len(_SCHEMA) : -len(_PAYLOAD)])
        some = values[at:end]
        if all(map(bytes.endswith, some, repeat(b"}"))):
            found = [value[size:-1] for value in some]
        else:
            found = [value[size:-1] if value[-1] == 125 else value[size:] for value in some]
        if isinstance(schema, str):
            yield at, end, None, schema
        else:
            yield at, end, schema, found
        at = end


def _prefix(value: bytes) -> bytes | None:
    """A message's bytes up to its payload, where it is written as Kafka Connect writes it."""
    if not value.startswith(b'{"schema":{') or not value.endswith(b"}"):
        return None
    try:
        text = value.decode()
        _, end = json.JSONDecoder().raw_decode(text, len(_SCHEMA))
    except (ValueError, RecursionError):
        return None
    size = len(text[:end].encode())
    return value[: size + len(_PAYLOAD)] if value[size : size + len(_PAYLOAD)] == _PAYLOAD else None


def _odd(value: bytes) -> tuple[connect.Schema | None, list[bytes] | str]:
    """A message of another layout (spaces, the payload first), its payload written anew digit for digit."""
    rows, bad = json_parse.load_exactly([(0, value)])
    if bad:
        return None, bad[0][1]
    found = rows[0][1]
    payload = json_parse.json_of(found.get("payload")).encode()
    if found.get("schema") is None:
        return None, [payload]
    schema = connect.read_schema(json_parse.json_of(found["schema"]).encode())
    return (None, schema) if isinstance(schema, str) else (schema, [payload])
