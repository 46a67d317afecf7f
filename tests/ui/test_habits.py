"""A person's habits: keys, light and dark, local time, wide tables, large plans, the back button."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.plan.graph import Graph
from headrace.plan.picture import laid_out

from .conftest import PATIENCE_MS, Opener, dashboard_of

playwright = pytest.importorskip("playwright.sync_api")
playwright.expect.set_options(timeout=PATIENCE_MS)
expect = playwright.expect


def test_keys_go_to_pages_rows_and_the_search(page: Any, fish_dashboard: str) -> None:
    page.goto(f"{fish_dashboard}/")
    page.keyboard.press("g")
    page.keyboard.press("t")
    page.wait_for_url("**/ui/topics")
    page.keyboard.press("/")
    expect(page.locator("[data-filter]")).to_be_focused()
    page.keyboard.type("weight-d")
    expect(page.locator("#topics tbody tr:visible")).to_have_count(1)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(page.locator("tr.current")).to_contain_text("weight-diff")
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/topics/weight-diff")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).not_to_be_visible()
    page.go_back()
    page.wait_for_url("**/ui/topics")


def test_light_or_dark_and_the_zone_are_remembered(opener: Opener, fish_dashboard: str) -> None:
    page = opener(color_scheme="light", timezone_id="Asia/Tokyo")
    page.goto(f"{fish_dashboard}/topics/weight-diff/3")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.click("#theme")
    assert page.evaluate(paper) != light
    page.goto(f"{fish_dashboard}/topics")
    assert page.evaluate(paper) != light
    time = page.locator("#topics time").first
    utc = time.text_content()
    page.click("#zone")
    expect(page.locator("#zone")).to_have_text("local")
    expect(time).not_to_have_text(utc)
    page.reload()
    expect(page.locator("#zone")).to_have_text("local")
    expect(time).not_to_have_text(utc)


def test_a_table_of_300_columns_can_be_used(opener: Opener, tmp_path: Path) -> None:
    log = tmp_path / "wide.headrace"
    app = hr.App("wide", log=log)
    app.topic("wide", append=True)
    with app.start() as running:
        running.append("wide", [{f"column_{number}": number * row for number in range(300)} for row in range(50)])
    with dashboard_of(log) as url:
        for width in (360, 1280):
            page = opener(viewport={"width": width, "height": 800})
            page.goto(f"{url}/topics/wide")
            expect(page.locator("#rows tbody tr")).to_have_count(50)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("#rows thead th").count() < 40, "the first of them, until others are chosen"
        page.locator("details.columns summary").click()
        page.locator("details.columns input[value=column_299]").check()
        page.locator("details.columns button").click()
        expect(page.locator("#rows thead")).to_contain_text("column_299")


def test_a_plan_of_200_parts_can_be_read(page: Any, tmp_path: Path) -> None:
    """It is as large as its text needs, in a part of the page that scrolls, and it fits when somebody wants it to."""
    log = tmp_path / "many.headrace"
    app = hr.App("many", log=log)
    for number in range(100):
        app.topic(f"in{number}", append=True).select("a").to(f"out{number}")
    with app.start():
        pass
    with dashboard_of(log) as url:
        page.goto(f"{url}/")
        svg = page.locator(".picture svg")
        assert page.locator(".picture [data-part]").count() >= 200
        height = svg.bounding_box()["height"]
        assert height > 2000 and page.locator(".picture").bounding_box()["height"] < 800
        page.click("[data-zoom=out]")
        assert svg.bounding_box()["height"] < height
        page.locator(".picture [data-part='topic:in99'] a").click()
        page.wait_for_url("**/ui/topics/in99")


def test_the_picture_says_rows_and_rates_with_their_units(page: Any, fish_dashboard: str) -> None:
    page.goto(f"{fish_dashboard}/")
    expect(page.locator("[data-part='topic:weight-diff'] .numbers").first).to_have_text("180 rows")
    expect(page.locator("[data-part='model:weight'] .numbers").first).to_have_text("v2 · 0% busy")
    expect(page.locator("[data-part='model:weight'] .numbers").nth(2)).to_have_text("0 waiting")
    expect(page.locator("[data-live='log/alarms']")).to_have_text("1")


def test_spare_lines_make_room(fish_log: Path) -> None:
    graph = Graph()
    graph.add_topic("a")
    low, high = laid_out(graph), laid_out(graph, spare=2)
    assert high.boxes["topic:a"][3] - low.boxes["topic:a"][3] >= 30
