"""Where the time of rounds goes, and what a pipeline says of itself beside its log."""

from __future__ import annotations

import time
from pathlib import Path

from tests.serve.client import FISH
from tests.serve.factory import factory
from tests.waiting import wait_until

from headrace.clock import SystemClock
from headrace.engines.local.engine import RoundTimes
from headrace.inspect.health import read_status
from headrace.log import open_log


def test_time_is_counted_for_the_part_that_took_it() -> None:
    times = RoundTimes(SystemClock())
    begun = time.perf_counter() - 2
    after = times.spent("capture", begun)
    assert 2 <= times.seconds["capture"] < 60
    times.spent("weight", after)
    times.spent("capture", after)
    assert set(times.seconds) == {"capture", "weight"} and times.seconds["capture"] >= 2
    assert times.latency() == {}, "nothing has come"


def test_a_pipeline_says_where_its_time_goes(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    with factory(log).start() as running:
        for number, row in enumerate(FISH):
            running.append("measured", [{**row, "Fish_Id": number}])
        running.append("weighed", [{"Fish_Id": 0, "Weight": 4.4}])
        seconds = running.engine.times.seconds
        assert seconds["weight"] > 0 and seconds["commit"] > 0
        latency = running.engine.times.latency()
        assert 0 <= latency["p50_ms"] <= latency["p99_ms"] < 60_000
        held = open_log(str(log), writer=False)
        pending = wait_until(
            lambda: gauge(read_status(held).figures, "pending_labels", 6), "labels that are waited for"
        )
        assert pending == 6, "a label may change within an hour"
        figures = read_status(held).figures
        assert {"weight", "commit"} <= set(figures["busy"]) and all(
            0 <= share <= 1 for share in figures["busy"].values()
        )
        assert figures["rounds"] >= 7 and figures["memory"] > 1_000_000
        held.close()


def gauge(figures: dict[str, object], name: str, least: float) -> float | None:
    gauges = figures.get("gauges", [])
    assert isinstance(gauges, list)
    return next((found["value"] for found in gauges if found["name"] == name and found["value"] >= least), None)
