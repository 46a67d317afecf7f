"""The join row by row: for events of a few rows, and where the size limit may be reached."""

from __future__ import annotations

from typing import Any

from headrace.arrays import Ints
from headrace.grade.interval_join.outcomes import EXPIRED, NULL_KEY, ORPHAN
from headrace.grade.interval_join.pairing import Pairing, Rows


def match_one_by_one(
    pairing: Pairing,
    left: tuple[list[Any], Ints, Ints],
    right: tuple[list[Any], Ints, Ints, list[bool], Ints],
    out: Rows,
) -> None:
    """Handle rows in the order of their places.

    Args:
        left: keys, event times and places of predictions.
        right: likewise of labels, then which are updates, and the codes of their truths.
        out: is given the outcomes.
    """
    keys, times, places = left[0], left[1].tolist(), left[2].tolist()
    label_keys, label_times, label_places = right[0], right[1].tolist(), right[2].tolist()
    updates, truths = right[3], right[4].tolist()
    i = j = 0
    while i < len(keys) or j < len(label_keys):
        if j == len(label_keys) or (i < len(keys) and places[i] < label_places[j]):
            _prediction(pairing, out, places[i], keys[i], times[i])
            i += 1
        else:
            _label(pairing, out, label_places[j], label_keys[j], label_times[j], updates[j], truths[j])
            j += 1


def _prediction(pairing: Pairing, out: Rows, place: int, key: Any, time: int) -> None:
    side = pairing.left
    side.time_us = max(side.time_us, time)
    watermark = _expire(pairing, out, place)
    seq = side.next_seq
    side.next_seq += 1
    if key is None:
        out.add(place, EXPIRED, seq, -1, time, 0, -1, NULL_KEY)
        side.left_few.append(seq)
        return
    grade, truth = pairing.on_prediction(out, place, key, time, seq, watermark)
    if watermark > time + pairing.within:
        side.left_few.append(seq)
        pairing.remembered.add(key, time)
        return
    side.store(key, time, seq, truth, grade)
    if side.live > pairing.limit:
        pairing.evict(out, place, left=True)


def _label(pairing: Pairing, out: Rows, place: int, key: Any, time: int, update: bool, truth: int) -> None:
    side = pairing.right
    side.time_us = max(side.time_us, time)
    watermark = _expire(pairing, out, place)
    seq = side.next_seq
    side.next_seq += 1
    if key is None:
        out.add(place, ORPHAN, -1, seq, time, 0, -1, NULL_KEY)
        side.left_few.append(seq)
        return
    departed = pairing.remembered.departed
    stays, use = pairing.on_label(out, place, key, time, seq, watermark, update=update, truth=truth, departed=departed)
    if not stays or watermark > time + pairing.within:
        side.left_few.append(seq)
        return
    side.store(key, time, seq, truth, use)
    if side.live > pairing.limit:
        pairing.evict(out, place, left=False)


def _expire(pairing: Pairing, out: Rows, place: int) -> int:
    """Let go what is over. Returns the watermark."""
    watermark = pairing.watermark
    before = watermark - pairing.within
    if pairing.left.order.first < before or pairing.right.order.first < before:
        pairing.expire(out, place, before)
    return watermark
