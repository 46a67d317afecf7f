"""Dead letters of a run: counted, and the first of each kind said at once, with the command that shows it."""

from __future__ import annotations

import logging
import re
import shlex
from collections import Counter
from collections.abc import Mapping

from headrace.batch import Batch
from headrace.errors import HeadraceError
from headrace.event_log import event
from headrace.log.base import Log
from headrace.plain_values import values

logger = logging.getLogger("headrace")

SUFFIX = ".dlq"
# Values in quotation marks, which differ between rows that are refused for one reason, as numbers do.
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
# Kinds that are said of each topic and stage: where a reason holds a value as it is, each would be a kind of its own.
_MOST_KINDS = 5
# Of more rows at once only some are looked at, and of long reasons their beginning; all rows are counted.
_LOOKED_AT = 256
_LONGEST = 200


def kind_of(reason: str) -> str:
    """Return a reason without what differs between rows.

    >>> kind_of("the feature «x1» is 1e400, not 'a number'")
    'the feature «x1» is … not …'
    """
    words = _QUOTED.sub("…", reason).split(" ")
    return " ".join("…" if "«" not in word and any(map(str.isdigit, word)) else word for word in words)


class DeadLetters:
    """The dead letters that were written since the start. Used by the engine's thread; `counts` may be read by any.

    Args:
        app: the pipeline's name.
        place: the log, as it is named to commands.

    Attributes:
        counts: rows by topic; replaced, never changed.
    """

    def __init__(self, app: str, place: str) -> None:
        self._app = app
        self._place = place
        self.counts: Mapping[str, int] = {}
        self._pending: list[tuple[str, Batch]] = []
        self._kinds: dict[tuple[str, str], set[str]] = {}

    def take(self, topic: str, letters: Batch) -> None:
        """Note letters in a transaction that is not committed yet."""
        self._pending.append((topic, letters))

    def undo(self) -> None:
        """Forget those of a transaction that was undone."""
        self._pending.clear()

    def commit(self) -> None:
        """Count those that are durable now, and say what is new among them."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        counts = Counter(self.counts)
        for topic, letters in pending:
            counts[topic] += letters.num_rows
            self._say(topic, letters)
        self.counts = dict(counts)

    def look(self, log: Log, before: Mapping[str, int]) -> None:
        """Take those that a source has written itself: behind these ends of topics."""
        for topic, info in log.topics().items():
            start = before.get(topic, 0)
            if topic.endswith(SUFFIX) and info.end > start:
                first = log.read_topic(topic, offset=max(start, info.first), limit=_LOOKED_AT)
                self.counts = {**self.counts, topic: self.counts.get(topic, 0) + info.end - start}
                for entry in first:
                    self._say(topic, Batch(entry.records.slice(max(0, start - entry.offset))))

    def _say(self, topic: str, letters: Batch) -> None:
        looked_at = letters.slice(0, _LOOKED_AT)
        reasons, stages = (values(looked_at.column(name)) for name in ("reason", "stage"))
        for stage, reason in dict.fromkeys(zip(stages, reasons, strict=True)):
            known = self._kinds.setdefault((topic, str(stage)), set())
            if len(known) >= _MOST_KINDS:
                continue
            text = str(reason)
            text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
            kind = kind_of(text)
            if kind not in known:
                known.add(kind)
                self._tell(topic, str(stage), text)

    def _tell(self, topic: str, stage: str, reason: str) -> None:
        command = letters_command(topic, self._place)
        logger.warning(
            "a row of %s went to the dead letters (%s): %s%s",
            topic.removesuffix(SUFFIX),
            stage,
            reason,
            f" · {command}" if command else "",
            extra=event("dead_letter", app=self._app, topic=topic, stage=stage, reason=reason, command=command),
        )


def letters_command(topic: str, place: str) -> str:
    """Return the command that shows a topic's letters; empty where no other process can.

    Args:
        place: the log, as it is named to commands.
    """
    if place.startswith("memory:"):
        return ""
    return shlex.join(["headrace", "topics", "cat", topic, "--log", place])


def letters_summary(counts: Mapping[str, int], place: str) -> str:
    """Return rows by topic in one line, with the command for most; empty where there are none."""
    counts = Counter(counts)
    rows = counts.total()
    if not rows:
        return ""
    where = ", ".join(f"{number:,} in {topic}" for topic, number in counts.most_common())
    command = letters_command(counts.most_common(1)[0][0], place)
    return f"{rows:,} {'row' if rows == 1 else 'rows'} went to dead letters: {where}" + (
        f" · {command}" if command else ""
    )


def refuse_letters(counts: Mapping[str, int], place: str) -> None:
    """Let a run that is strict end in failure.

    Raises:
        HeadraceError: there are some.
    """
    if counts:
        what, _, command = letters_summary(counts, place).partition(" · ")
        raise HeadraceError(what, advice=command or "Read their topic: app.topic(…).read().")
