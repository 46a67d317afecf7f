"""Results over HTTP: one request a row, which a receiver can tell from its repetition and from a stranger's.

Every request carries ``Idempotency-Key: <app>/<topic>/<offset>``, the same at every attempt: a receiver that knows it
has done what is asked. With ``secret=`` it is signed as Stripe's webhooks are: ``Headrace-Signature:
t=SECONDS,v1=HEX``, where HEX is the HMAC-SHA256 of ``SECONDS.BODY``. The position is a record of the log, stored after
the answers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pyarrow as pa

from headrace.batch import Batch
from headrace.clock import Clock, SystemClock, duration_us
from headrace.errors import DeclarationError, SinkError
from headrace.faults import fault
from headrace.http_client import HttpClient, NoResponse
from headrace.retry import Backoff
from headrace.sinks.base import Reason, SinkBatch, SinkContext, SinkSpec, Stopped
from headrace.sinks.json_row import json_rows

METHODS = ("POST", "PUT", "PATCH")
KEPT_EVERY = 0.1
LONGEST_RESPONSE = 65_536
LONGEST_WAIT = 3600.0
# The receiver is not ready for anybody's request.
PASSING = frozenset({408, 425, 429})
# It does not let us in, or is somewhere else: no row is at fault, and none would be taken.
SHUT = frozenset({401, 403, 407})


@dataclass(frozen=True, slots=True)
class HttpSpec(SinkSpec):
    """A receiver, as declared.

    Raises:
        DeclarationError: the URL, the method or a header cannot be.

    >>> spec = HttpSpec("https://me:secret@hooks.example.com/alarms?token=abc")
    >>> spec.where
    'https://hooks.example.com/alarms'
    """

    url: str = field(repr=False)
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret: bytes | None = field(default=None, repr=False)
    success_topic: str | None = None
    error_topic: str | None = None
    retries: int | None = None
    backoff: float = 0.1
    timeout: float = 10.0
    kind = "http"
    key: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good or any(ord(letter) <= 32 or ord(letter) == 127 for letter in self.url):
            raise DeclarationError("to_http: the URL cannot be read", advice="Give http(s)://HOST[:PORT]/PATH.")
        if self.method not in METHODS:
            raise DeclarationError(f"to_http: method={self.method!r}", advice=f"Give one of {', '.join(METHODS)}.")
        for name, value in self.headers.items():
            if not name or any(ord(letter) < 32 or ord(letter) > 255 for letter in f"{name}{value}"):
                raise DeclarationError(f"to_http: the header {name!r} cannot be sent")
        if self.retries is not None and self.retries < 0:
            raise DeclarationError(f"to_http: retries={self.retries}", advice="Give 0 or more, or None for ever.")
        if self.timeout <= 0 or self.backoff <= 0:
            raise DeclarationError(f"to_http: timeout={self.timeout}, backoff={self.backoff}: give positive times")

    @property
    def where(self) -> str:
        """The URL without user, password and query, which may hold a token."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    @property
    def writes(self) -> tuple[str, ...]:
        """See `SinkSpec.writes`."""
        return tuple(topic for topic in (self.success_topic, self.error_topic) if topic)

    def sink(self, context: SinkContext) -> HttpSink:
        """See `SinkSpec.sink`."""
        return HttpSink(self, context)


def http_spec(
    url: str,
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    secret: str | bytes | None = None,
    success_topic: str | None = None,
    error_topic: str | None = None,
    retries: int | None = None,
    backoff: str | float | timedelta = 0.1,
    timeout: str | float | timedelta = 10.0,
) -> HttpSpec:
    """A receiver as a user declares it."""
    key = secret.encode() if isinstance(secret, str) else secret
    if key == b"":
        raise DeclarationError("to_http: secret is empty", advice="Give a secret, or leave it out.")
    return HttpSpec(
        str(url), method.upper(), dict(headers or {}), key, success_topic, error_topic, retries,
        _seconds(backoff, "backoff"), _seconds(timeout, "timeout"),
    )  # fmt: skip


def _seconds(value: str | float | timedelta, what: str) -> float:
    if isinstance(value, int | float):
        return float(value)
    try:
        return duration_us(value) / 1e6
    except ValueError as error:
        raise DeclarationError(f"to_http: {what}={value!r}: {error}") from error


def signature(secret: bytes, body: bytes, seconds: int) -> str:
    """Return ``Headrace-Signature`` for a body sent at a time (seconds since 1970).

    >>> signature(b"secret", b"{}", 1623283200)
    't=1623283200,v1=274d5eed48b0f98d6133e51b27031acc2376ae76d313074b16341ab545b218dd'
    """
    digest = hmac.new(secret, f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a row: a status (0: no response), the response's beginning, and how many attempts it took."""

    status: int
    body: str
    attempts: int

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300


class HttpSink:
    """A receiver; see `headrace.sinks.base.Sink`. Its connection is kept open between requests."""

    rows = 1_000
    linger = 0.0

    def __init__(self, spec: HttpSpec, context: SinkContext, *, clock: Clock | None = None) -> None:
        self.spec = spec
        self.context = context
        self.clock = clock or SystemClock()
        self._client = HttpClient(spec.timeout)
        parts = urlsplit(spec.url)
        self._headers = {**spec.headers, "Content-Type": "application/json"}
        if parts.username and "authorization" not in map(str.lower, self._headers):
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"

    def open(self) -> int:
        """See `Sink.open`; the receiver is first asked with the first row."""
        return self.context.position

    def cancel(self) -> None:
        """See `Sink.cancel`."""
        self._client.cancel()

    def close(self) -> None:
        """See `Sink.close`."""
        self._client.close()

    def deliver(self, part: SinkBatch) -> None:
        """See `Sink.deliver`: a request for each row; answers and position are stored every tenth of a second."""
        ids, done = part.ids(self.context.app), 0
        answers: list[Answer] = []
        kept = self.clock.monotonic()
        try:
            for row, value in enumerate(json_rows(part.batch)):
                answers.append(self._send(value, part, row, ids[row]))
                fault("sink.written")
                if self.clock.monotonic() - kept >= KEPT_EVERY and self._whole(part, row):
                    self._keep(part, done, answers, int(part.offsets[row]) + 1)
                    done, answers, kept = row + 1, [], self.clock.monotonic()
        except (SinkError, Stopped):
            # What was sent is not sent again.
            count = self._settled(part, done + len(answers)) - done
            if count > 0:
                self._keep(part, done, answers[:count], int(part.offsets[done + count - 1]) + 1)
            raise
        self._keep(part, done, answers, part.end)

    @staticmethod
    def _whole(part: SinkBatch, row: int) -> bool:
        """Return whether the rows made of one row of the topic end here: a position is between two such."""
        return row + 1 == part.offsets.size or bool(part.offsets[row + 1] != part.offsets[row])

    def _settled(self, part: SinkBatch, rows: int) -> int:
        """As many of the first rows as are whole."""
        while rows > 0 and not self._whole(part, rows - 1):
            rows -= 1
        return rows

    def _keep(self, part: SinkBatch, start: int, answers: Sequence[Answer], position: int) -> None:
        some = SinkBatch(part.topic, part.first, position, part.batch.slice(start, len(answers)), part.offsets[start:][: len(answers)])  # noqa: E501  # fmt: skip
        outputs = []
        for topic, good in ((self.spec.success_topic, True), (self.spec.error_topic, False)):
            rows = np.array([i for i, answer in enumerate(answers) if answer.good == good], np.int64)
            if topic and rows.size:
                outputs.append((topic, _responses(some.take(rows), [answers[i] for i in rows], self.context.app)))
        refused: list[Reason] = [(i, _reason(answer)) for i, answer in enumerate(answers) if not answer.good]
        self.context.keep(position, outputs=outputs, refused=(some, refused) if refused else None)
        fault("sink.committed")

    # -- one request ----------------------------------------------------------------------------------------------

    def _send(self, body: bytes, part: SinkBatch, row: int, name: str) -> Answer:
        """Ask until there is an answer that counts, or no attempt is left."""
        backoff, attempts = Backoff(first=self.spec.backoff), 0
        headers = {
            **self._headers,
            "Idempotency-Key": quote(name, safe="/"),
            "Headrace-Topic": quote(part.topic, safe=""),
            "Headrace-Op": chr(part.batch.op[row]),
        }
        while True:
            attempts += 1
            wait = 0.0
            try:
                status, text, wait = self._ask(body, headers)
                if status in SHUT or 300 <= status < 400:
                    raise SinkError(
                        f"{self.spec.where} answers {status}: it lets nobody in with these headers, or is elsewhere",
                        advice="Check the address, user and headers; the sink tries again.",
                    )
                if status < 500 and status not in PASSING:
                    return Answer(status, text, attempts)
                problem = f"answers {status}"
            except NoResponse as error:
                self._client.close()
                status, text, problem = 0, "", f"cannot be reached: {error}"
            if self.spec.retries is not None and attempts > self.spec.retries:
                return Answer(status, text or problem, attempts)
            self.context.pause(max(wait, backoff.next()), f"{self.spec.where} {problem}")

    def _ask(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, str, float]:
        """Send a request; returns the status, the response's beginning and the seconds that it asks to wait."""
        signed = dict(headers)
        if self.spec.secret is not None:
            signed["Headrace-Signature"] = signature(self.spec.secret, body, self.clock.now_us() // 1_000_000)
        response = self._client.request(
            self.spec.method, self.spec.url, headers=signed, body=body, limit=LONGEST_RESPONSE
        )
        wait = _seconds_after(response.headers.get("Retry-After"), self.clock)
        return response.status, response.body.decode(errors="replace"), wait


def _responses(part: SinkBatch, answers: Sequence[Answer], app: str) -> Batch:
    """Answers as rows, at the positions of the rows that were sent."""
    columns: dict[str, Any] = {
        "idempotency_key": pa.array(part.ids(app)),
        "status": pa.array([answer.status for answer in answers], pa.int64()),
        "attempts": pa.array([answer.attempts for answer in answers], pa.int64()),
        "response": pa.array([answer.body for answer in answers]),
        "request": pa.array([row.decode() for row in json_rows(part.batch)]),
    }
    batch = part.batch
    return Batch.of(columns, lsn=batch.lsn, index=batch.index, ts_us=batch.ts_us, source=batch.source)


def _reason(answer: Answer) -> str:
    what = f"the receiver answered {answer.status}" if answer.status else "no answer"
    return f"{what} after {answer.attempts} attempts: {answer.body[:500]}".rstrip(": ")


def _seconds_after(text: str | None, clock: Clock) -> float:
    """Return the seconds that ``Retry-After`` asks for, as a number or a time."""
    if not text:
        return 0.0
    try:
        if text.strip().isdigit():
            return min(LONGEST_WAIT, float(text))
        seconds = parsedate_to_datetime(text).timestamp() - clock.now_us() / 1e6
    except (ValueError, TypeError):
        return 0.0
    return min(LONGEST_WAIT, max(0.0, seconds))
