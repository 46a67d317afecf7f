"""The last hour of a pipeline: as it has said itself, else as the rows of its log tell it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from headrace.batch import OPS, Batch
from headrace.inspect.health import Sample, read_history
from headrace.log.base import Log
from headrace.registry.plans import read_plans

HOUR_US = 3_600_000_000
BUCKET_US = 5_000_000
NEWEST_ROWS = 20_000  # of a topic of predictions: what a page may read for a curve
VERSION = "model_version"  # a column of predictions


def history_of(log: Log) -> list[Sample]:
    """Return figures of the last hour."""
    return read_history(log) or recorded(log)


def joined(recorded: Iterable[Sample], watched: Iterable[Sample]) -> list[Sample]:
    """Return what was noted all the time together with what was seen, more closely, while somebody looked.

    >>> [sample.ts for sample in joined([Sample(1, 5, 9, 2, 7), Sample(6, 5, 9, 2, 7)], [Sample(2, 4, 8, 2, 7)])]
    [1, 2, 6]
    """
    return sorted((*recorded, *watched), key=lambda sample: sample.ts)


def recorded(log: Log) -> list[Sample]:
    """Return what the newest predictions of a log tell, of the hour before the last of them, in steps of 5 s.

    A row carries when it was committed in its database, its entry when that was appended beside its prediction. Rounds
    are those that predicted something; the memory of the process is not known.
    """
    found = [delays for topic in _predicted(log) for delays in _delays(log, topic)]
    if not found:
        return []
    ends, slices = np.array([end for end, _, _ in found]), np.array([number for _, number, _ in found])
    buckets = ends // BUCKET_US
    samples = []
    for bucket in np.unique(buckets[ends > ends.max() - HOUR_US]).tolist():
        chosen = np.flatnonzero(buckets == bucket)
        p50, p99 = np.percentile(np.concatenate([found[place][2] for place in chosen]), (50, 99)).tolist()
        rounds = len(np.unique(slices[chosen])) / (BUCKET_US / 1e6)
        samples.append(Sample(bucket * BUCKET_US / 1e6, round(p50, 3), round(p99, 3), rounds, None))
    return samples


def _predicted(log: Log) -> list[str]:
    """Return the topics that models write."""
    arrows = [arrow for plan in read_plans(log).values() for arrow in plan["arrows"]]
    ends = {arrow["end"].removeprefix("topic:") for arrow in arrows if arrow["start"].startswith("model:")}
    return sorted(ends & log.topics().keys())


def _delays(log: Log, topic: str) -> Iterable[tuple[int, int, np.ndarray[tuple[int], np.dtype[np.float64]]]]:
    """Yield when an entry of predictions was appended, its slice, and milliseconds since its rows' commits."""
    begin = max(0, log.topics()[topic].end - NEWEST_ROWS)
    for entry in log.read_topic(topic, offset=begin, limit=NEWEST_ROWS):
        if VERSION in entry.records.schema.names and entry.records.num_rows:
            batch = Batch(entry.records)
            live = np.asarray(batch.op) != OPS["r"]  # rows of a snapshot are as old as they are
            if live.any():
                yield entry.ts_us, entry.slice, (entry.ts_us - np.asarray(batch.ts_us)[live]) / 1e3
