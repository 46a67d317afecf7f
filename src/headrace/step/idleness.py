"""Time that passes without rows: what waits too long is given up, and the last window closes.

A tick says how long each topic has been silent while everything that had come was dealt with. The time of what is
derived goes on by that from the newest row's own, so that event times of any year are moved by the right amount.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.grade.interval_join.join import Join
from headrace.grade.windows.window import Window
from headrace.plan.operators import Grade, Node, Predicted, Read, Windows
from headrace.step.events import Merged, Tick
from headrace.step.grade_join import Refuse
from headrace.step.operator_run import OperatorRun, Raised
from headrace.step.operator_state import NEVER, OperatorState


def watched(nodes: Sequence[Node], predicted: Sequence[str]) -> tuple[str, ...]:
    """Topics whose silence moves the time of what is derived."""
    found = [topic for i in range(len(nodes)) for topic in _topics(nodes, i, predicted)]
    return tuple(dict.fromkeys(found))


def due(nodes: Sequence[Node], flow: OperatorState, predicted: Sequence[str], idle_us: Mapping[str, int]) -> bool:
    """Whether a tick with these silences would bring anything about."""
    for i, node in enumerate(nodes):
        running, what = flow.running[i], node.what
        if isinstance(what, Grade) and isinstance(running, Join):
            deadline = running.deadline_us
            if deadline is not None and min(_times(nodes, i, flow, predicted, idle_us)) - what.lateness_us >= deadline:
                return True
        elif isinstance(what, Windows) and isinstance(running, Window):
            deadline = running.deadline_us
            if deadline is not None and _watermark(nodes, i, running, predicted, idle_us) >= deadline:
                return True
    return False


def idle(
    nodes: Sequence[Node], flow: OperatorState, tick: Tick, predicted: Sequence[str], refuse: Refuse, **more: Any
) -> tuple[OperatorRun, Raised | None]:
    """Let a tick bring about what is due.

    Args:
        predicted: the topic of each stream that is predicted.

    Returns:
        What came of it, and the row that begins a training.
    """
    lsn, index = flow.at
    one = np.zeros(1, np.int64)
    place = (np.array([lsn], np.uint64), one + index, one)
    merged = Merged((), one, one + tick.ts_us, *place, one, (lsn, 0))
    derive = OperatorRun(nodes, flow, merged, streams=lambda _, __: [], refuse=refuse, **more)
    for i, node in enumerate(nodes):
        running = flow.running[i]
        if isinstance(node.what, Grade) and isinstance(running, Join):
            left, right = _times(nodes, i, flow, predicted, tick.idle_us)
            if min(left, right) > NEVER:
                derive.expire(i, running.advance(left, right))
        elif isinstance(node.what, Windows) and isinstance(running, Window) and running.time_us > NEVER:
            derive.close_at[i] = _watermark(nodes, i, running, predicted, tick.idle_us)
    raised = derive.advance(1)
    derive.finish()
    return derive, raised


def _topics(nodes: Sequence[Node], i: int, predicted: Sequence[str]) -> list[str]:
    """Topics that a node's rows come from."""
    what, source = nodes[i].what, nodes[i].source
    if isinstance(what, Predicted):
        return [predicted[what.number]]
    if isinstance(what, Read):
        return [what.stream.topic]
    assert source is not None
    before = _topics(nodes, source, predicted)
    return [*before, what.truth.topic] if isinstance(what, Grade) else before


def _times(
    nodes: Sequence[Node], i: int, flow: OperatorState, predicted: Sequence[str], idle_us: Mapping[str, int]
) -> tuple[int, int]:
    """Both sides' times; one that has never had a row goes by the other's."""
    left, right = flow.seen.get(i, (NEVER, NEVER))
    left_topic, right_topic = _topics(nodes, i, predicted)
    newest = max(left, right)
    if newest == NEVER:
        return NEVER, NEVER
    return (
        (left if left > NEVER else newest) + idle_us.get(left_topic, 0),
        (right if right > NEVER else newest) + idle_us.get(right_topic, 0),
    )


def _watermark(
    nodes: Sequence[Node], i: int, window: Window, predicted: Sequence[str], idle_us: Mapping[str, int]
) -> int:
    """A window's time: while one side is silent, nothing is graded either."""
    what = nodes[i].what
    assert isinstance(what, Windows)
    silent = max(idle_us.get(topic, 0) for topic in _topics(nodes, i, predicted))
    return window.time_us + silent - what.spec.lateness_us
