"""The pipelines of a cluster, as the list of them shows them: how each is, what its log holds. No log is opened."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.inspect.health import status_of
from headrace.log.kafka_view import PRODUCERS, KafkaView
from headrace.plan.plan import INTERNAL
from headrace.ui.read.pipeline import state_of

LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PipelineLine:
    """A pipeline in the list.

    Attributes:
        state: how it is, in words; see `headrace.ui.read.pipeline.state_of`.
        where: the process that said so; "" where none did.
        topics, rows: of its log, those of Headrace's own left out.
        last_us: when the newest of its rows was appended; 0 without rows.
        unreadable: why its log cannot be read.
    """

    name: str
    state: str
    where: str
    topics: int
    rows: int
    last_us: int
    unreadable: str = ""


def pipeline_numbers(view: KafkaView) -> dict[str, str]:
    """Return the numbers of the list that move, by their keys."""
    found: dict[str, str] = {}
    for line in pipeline_lines(view):
        key = f"pipeline:{line.name}"
        found |= {f"{key}/state": line.state, f"{key}/rows": f"{line.rows:,}"}
    return found


def pipeline_lines(view: KafkaView) -> list[PipelineLine]:
    """Return the pipelines of a cluster; of those whose changelogs take long to read what is known by now."""
    found = []
    for name, known in view.known(LOOK_SECONDS).items():
        if name.startswith(PRODUCERS):
            continue
        status = status_of(known.status)
        mine = {
            topic: about for topic, about in known.topics.items() if about.visible and not topic.startswith(INTERNAL)
        }
        found.append(
            PipelineLine(
                name,
                state_of(status, mute=not status.parts and not status.stopped),
                status.where,
                len(mine),
                sum(about.rows for about in mine.values()),
                max((about.last_ts_us for about in mine.values()), default=0),
                known.unreadable,
            )
        )
    return found
