"""Topics that others write: what they are is decided once, message by message, and no message stops the others."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import plain_values
from headrace.batch import Batch
from headrace.formats.topic_formats import ForeignFormats, TopicCodec
from headrace.wire import WireMessages

DECLARED = b'{"schema":{"type":"struct","fields":[{"type":"int32","field":"id"}]},"payload":{"id":%s}}'
VALUES = [
    None,
    b"",
    b"hello",
    b"\xff",
    b"null",
    b"[1]",
    b"{}",
    b'{"id":1}',
    b'{"id":-0}',
    b'{"id":0.5,"__deleted":"true"}',
    b'{"id":9007199254740993,"__op":"u"}',
    b'{"id":1e400}',
    b'{"id":"text"}',
    b'\xef\xbb\xbf{"id":[1]}',
    b'{"schema":null,"payload":{"id":0.5}}',
    DECLARED % b"1",
    DECLARED % b"3000000000",
    DECLARED.replace(b"int32", b"int31") % b"1",
    b'{"before":null,"after":{"id":2},"op":"c","source":{"lsn":1}}',
    b'{"before":{"id":"x"},"after":{"id":3},"op":"u","source":{"lsn":2}}',
    b'{"before":null,"after":{"id":4,"__op":1},"op":"c","source":{}}',
]
KEYS = [None, b'{"id":1}', b'{"id":0.5}', b"k", b"\xff", DECLARED % b"5"]
Found = dict[int, list[tuple[Any, ...]]]


def read(messages: list[tuple[bytes | None, bytes | None]], cuts: list[int]) -> Found:
    """What became of each message, read in pieces with a restart between two."""
    formats = ForeignFormats(TopicCodec())
    found: Found = {}
    for start, end in itertools.pairwise(sorted({0, *cuts, len(messages)})):
        keys, values = zip(*messages[start:end], strict=True)
        told = WireMessages("s.public.t", list(values), offsets=np.arange(start, end), keys=list(keys))
        name, decoded = formats(told)
        for i, (batch, rows) in enumerate(decoded.parts):
            for row, at in enumerate(rows.tolist()):
                form = decoded.formats[i] if decoded.formats else name
                found.setdefault(start + at, []).append((form, *shown(batch, row)))
        for at, why in decoded.bad:
            found.setdefault(start + at, []).append(("bad", why))
        formats.restore(formats.records())
    return found


def shown(batch: Batch, row: int) -> tuple[str, str]:
    values = plain_values.rows(batch.rows.slice(row, 1))[0] if batch.rows.num_columns else {}
    return chr(batch.op[row]), repr({name: value for name, value in values.items() if value is not None})


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), min_size=1, max_size=9), st.data())
def test_what_becomes_of_a_message_does_not_depend_on_the_fetch(
    messages: list[tuple[bytes | None, bytes | None]], data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(1, len(messages)), max_size=4))
    assert read(messages, []) == read(messages, cuts) == read(messages, list(range(len(messages))))


@pytest.mark.parametrize(
    ("values", "formats"),
    [
        ([b"a", b"b"], ["~string", "~string"]),
        ([b"a", b"\xff", b"b"], ["~string", "~bytes", "~bytes"]),
        ([b"a", b"b", b"c", b'{"id":1}', b"d", b'{"id":2}'], ["~string"] * 3 + ["~json", "bad", "~json"]),
        ([b'{"id":1}', b"a", b"b", b"c"], ["~json", "bad", "bad", "bad"]),
    ],
)
def test_one_unlucky_fetch_decides_nothing(values: list[bytes], formats: list[str]) -> None:
    found = read([(None, value) for value in values], [])
    assert [found[i][0][0] for i in range(len(values))] == formats


def test_tombstones_in_every_format() -> None:
    key: bytes | None = b'{"id":1}'
    assert read([(key, None), (key, b'{"id":1}'), (key, None)], [])[2] == [("~json", "d", "{'id': 1}")]
    assert read([(b"k", b"text"), (b"k", None)], [])[1] == [("~string", "d", "{'key': 'k'}")]
    assert read([(b"\xff", b"\xff"), (b"\xff", None)], [])[1] == [("~bytes", "d", "{'key': b'\\xff'}")]
