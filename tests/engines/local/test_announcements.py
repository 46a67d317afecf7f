"""What a running pipeline says of itself."""

from __future__ import annotations

import pytest

import headrace as hr


def test_an_alarm_tells_the_value_that_raised_it_however_many_columns_there_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = hr.App("boilers", log="memory://")
    app.topic("measured", append=True).above(90, column="heat").to("hot")
    with caplog.at_level("WARNING", "headrace"), app.start() as running:
        running.append("measured", [{"id": 1, "a": 2, "b": 3, "c": 4, "d": 5, "heat": 97.5}])
        running.wait(60)
    assert "alarm in hot: id 1, a 2, b 3, heat 97.5" in caplog.text
