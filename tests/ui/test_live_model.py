"""Scores, the confusion matrix and charts of a model move while somebody looks at them; what a person did stays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

import headrace as hr
from headrace.errors import LogError
from headrace.serve.settings import ServeSettings
from headrace.ui.live_parts import LivePart, LiveParts

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect


@dataclass
class Signs:
    """A classifier of signs, which is told wrong ones where a test wants it to be wrong."""

    url: str
    running: Any
    number: int = 0

    def rows(self, count: int, *, right: bool = True) -> None:
        """Append rows, each scored and graded."""
        numbers = range(self.number, self.number + count)
        self.number += count
        rows = [{"id": number, "x": 1.0 if number % 2 else -1.0, "sign": number % 2} for number in numbers]
        rows = rows if right else [row | {"sign": 1 - row["sign"]} for row in rows]
        self.running.append("rows", rows)
        self.running.append("truth", [{"id": row["id"], "y": row["sign"]} for row in rows])
        self.running.wait()


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signs]:
    linear = pytest.importorskip("sklearn.linear_model")
    app = hr.App("signs", log=tmp_path_factory.mktemp("signs") / "signs.headrace")
    rows = app.topic("rows", append=True)
    known = linear.SGDClassifier(random_state=0).fit([[-1.0], [1.0]] * 4, [0, 1] * 4)
    model = app.model("signs", known, features=["x"], target="sign", versions=10)
    model.learn(app.topic("lessons", append=True), every=10)
    predicted = model.predict(rows).to("signs-predicted")
    truth = app.topic("truth", append=True)
    predicted.grade(truth, on="id", within="1 h", metric=hr.metrics.absolute_error, target="y").to("signs-graded")
    model.evaluate(rows, every=1)
    with app.start(serve=ServeSettings(port=0)) as running:
        assert running.server is not None
        made = Signs(running.server.url, running)
        made.rows(20)
        running.append("lessons", [{"x": 1.0, "sign": 1}, {"x": -1.0, "sign": 0}] * 10)
        running.wait()
        yield made


def test_scores_confusion_and_charts_move_and_what_a_person_did_stays(page: Any, signs: Signs) -> None:
    """Nothing is loaded again: canvases are the same, tables stay open, the page stays where it was scrolled to."""
    page.goto(f"{signs.url}/ui/models/signs")
    page.locator("body[data-stream=open]").wait_for()
    chart = page.locator("#charts figure", has_text="Error of each prediction")
    expect(chart).to_contain_text("20 rows")
    expect(page.locator("#scores h2")).to_have_text("Scores on rows: 20 rows")
    page.locator("#charts details").first.locator("summary").click()
    page.get_by_label("Compare version").fill("7")
    page.evaluate("document.querySelector('#charts canvas').mine = 1; window.loaded = performance.now()")
    page.evaluate("scrollTo(0, 400)")
    signs.rows(10, right=False)
    expect(page.locator("#scores h2")).to_have_text("Scores on rows: 30 rows")
    matrix = page.locator("table.confusion tbody tr")
    expect(matrix.nth(0).locator("td")).to_have_text(["10", "5", "67 %"])
    expect(matrix.nth(1).locator("td")).to_have_text(["5", "10", "67 %"])
    expect(chart).to_contain_text("30 rows")
    expect(page.locator("#charts details[open] tbody tr")).to_have_count(30)
    assert json.loads(chart.get_attribute("data-chart"))["values"][1][-1] == 1.0
    assert page.evaluate("document.querySelector('#charts canvas').mine") == 1
    assert page.evaluate("window.loaded") > 0
    assert page.evaluate("scrollY") == 400
    assert page.get_by_label("Compare version").input_value() == "7"
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter(each => each.name.includes('/charts')).length")
        == 1
    )


def test_the_axis_that_was_chosen_goes_on(page: Any, signs: Signs) -> None:
    page.goto(f"{signs.url}/ui/models/signs")
    page.get_by_role("link", name="over time", exact=True).click()
    page.locator("#charts [data-pushed*='x=time']").wait_for()
    expect(page.locator("#charts figure", has_text="Error of each prediction")).to_contain_text(f"{signs.number} rows")
    signs.rows(4)
    expect(page.locator("#charts figure", has_text="Error of each prediction")).to_contain_text(f"{signs.number} rows")
    expect(page.locator("#charts [aria-current=true]")).to_have_text("over time")


def test_a_part_is_made_once_for_all_viewers_and_when_something_has_moved() -> None:
    """Of names that nothing has there is none; the last viewer's leaving forgets it."""

    async def looked() -> None:
        parts, made = LiveParts(), []

        def maker(values: Any) -> LivePart:
            if values["model"] != "m":
                raise LogError("there is no such model")
            return LivePart(["topic:a/end"], lambda: made.append(1) or f"made {len(made)}")

        parts.offer("charts", maker)
        names = ["charts?model=m", "charts?model=other", "nothing?model=m", "charts"]
        async with parts.watching(names) as mine, parts.watching(names) as theirs:
            assert list(mine) == ["charts?model=m"] and mine == theirs
            part = mine["charts?model=m"]
            assert await parts.refresh({"": {"topic:a/end": "1"}}) and part.text == "made 1"
            assert not await parts.refresh({"": {"topic:a/end": "1"}})
            assert not await parts.refresh({"": {"topic:a/end": "2"}}), "not more often than once a second"
            part.due = 0.0
            assert await parts.refresh({"": {"topic:a/end": "2"}}) and part.text == "made 2"
        part.due = 0.0
        assert not await parts.refresh({"": {"topic:a/end": "3"}}) and len(made) == 2
        async with parts.watching(names) as again:
            assert again["charts?model=m"].text == ""

    # Playwright keeps a loop of its own in this thread.
    with ThreadPoolExecutor(1) as other:
        other.submit(asyncio.run, looked()).result()
