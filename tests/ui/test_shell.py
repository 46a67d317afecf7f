"""What all pages have: they open, their numbers move, they go back in time, and they show rows as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.ui.site import NAV
from tests.serve.client import FISH, fish, serving

from .conftest import PATIENCE_MS, Opener, dashboard_of

playwright = pytest.importorskip("playwright.sync_api")
playwright.expect.set_options(timeout=PATIENCE_MS)
expect = playwright.expect
SCRIPT = "<script>window.hurt = 1</script>"
HURT = f'"><img src=x onerror="window.hurt=1">{SCRIPT}'


@pytest.mark.parametrize("path", [path for _, path in NAV])
def test_every_page_of_the_navigation_opens(page: Any, fish_dashboard: str, path: str) -> None:
    page.goto(f"{fish_dashboard}{path}")
    expect(page.locator("nav[aria-label=Pages] a[aria-current=page]")).to_have_count(1)
    expect(page.locator("main h1")).to_be_visible()
    expect(page.locator("[data-live='log/state']")).to_have_text("stopped")


def test_numbers_move_while_the_pipeline_runs(page: Any, tmp_path: Path) -> None:
    with serving(fish(tmp_path / "fish.headrace")) as (running, client):
        page.goto(f"{client.url}/ui/")
        expect(page.locator("[data-live='log/state']")).to_have_text("running")
        for count, row in enumerate(FISH, 1):
            running.append("measured", [row])
            expect(page.locator("[data-live='topic:measured/rows']:visible")).to_have_text(f"{count:,}")
        expect(page.locator("[data-live='model:weight/learned']:visible")).to_have_text("6")
        page.goto("about:blank")


def test_a_page_is_as_it_was_at_a_place(page: Any, fish_dashboard: str) -> None:
    page.goto(f"{fish_dashboard}/topics?at=machine-measurement:9")
    expect(page.locator(".then")).to_contain_text("As it was at machine-measurement:9")
    row = page.locator("#topics tr", has_text="machine-measurement")
    expect(row.locator("td").first).to_have_text("10")
    page.locator("#topics a", has_text="machine-measurement").click()
    page.wait_for_url("**/topics/machine-measurement?at=*")
    expect(page.locator("#rows tbody tr")).to_have_count(10)
    page.locator("a.now").click()
    expect(page.locator("#rows tbody tr")).to_have_count(100)


def test_rows_are_text(opener: Opener, tmp_path: Path) -> None:
    """Names and values that would be a page's, were they not text."""
    opener.expected.append("400: ")
    page = opener()
    log = tmp_path / f"{HURT.replace('/', '')}.headrace"
    app = hr.App("hurt", log=log)
    app.topic("a<script>window.hurt=1</script>".replace("/", "-"), append=True)
    app.topic("measured", append=True)
    with app.start() as running:
        running.append("measured", [{HURT: HURT, "b": SCRIPT}])
        running.wait(60)
    with dashboard_of(log) as url:
        for path in ("/", "/topics?internal=yes", "/topics/measured", "/topics/measured/0", f"/topics?at={SCRIPT}"):
            page.goto(f"{url}{path}", wait_until="networkidle" if path.startswith("/topics/measured/") else "load")
            assert page.evaluate("window.hurt") is None, path
            assert "main script" not in page.content()
            expect(page.locator("main script, main img")).to_have_count(0)
        page.goto(f"{url}/topics/measured/0")
        expect(page.locator("main")).to_contain_text(HURT)


def test_the_slider_goes_through_time(page: Any, fish_dashboard: str) -> None:
    """By its marks, and by the keyboard; the page is of then, and the slider keeps the focus."""
    page.goto(f"{fish_dashboard}/topics")
    rail = page.locator("[data-travel]")
    newest = int(rail.get_attribute("max"))
    assert int(rail.input_value()) == newest
    marks = page.locator(".travel a")
    expect(marks.first).to_be_visible()
    kinds = {title.partition(":")[0] for title in page.locator(".travel title").all_text_contents()}
    assert kinds == {"version", "alarm", "training"}
    page.get_by_role("link", name="version: version 2").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/topics?at=slice:*")
    expect(page.locator(".then")).to_contain_text("As it was at slice:")
    expect(rail).to_be_visible()
    then = int(rail.input_value())
    assert then < newest
    rail.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**at=slice%3A{then - 1}")
    expect(rail).to_be_focused()
    page.keyboard.press("End")
    page.wait_for_url(f"{fish_dashboard}/topics")


def test_health_says_what_is_stored_and_what_is_wrong(page: Any, fish_dashboard: str) -> None:
    page.goto(f"{fish_dashboard}/health")
    main = page.locator("main")
    for text in ("Nothing: no part is away", "No process says that it runs", "Checkpoints", "weight", "scikit-learn"):
        expect(main).to_contain_text(text)
    expect(main.locator("th", has_text="on disk")).to_be_visible()


def test_health_of_a_pipeline_that_runs(page: Any, tmp_path: Path) -> None:
    with serving(fish(tmp_path / "fish.headrace"), FISH) as (running, client):
        page.goto(f"{client.url}/ui/")
        expect(page.locator("[data-live='log/state']")).to_have_text("running")
        running.append("measured", [FISH[0]])
        expect(page.locator("[data-live='log/rounds']")).to_contain_text("/s")
        page.goto(f"{client.url}/ui/health")
        for text in ("append", "engine", "commit", "weight", "rounds"):
            expect(page.locator("main")).to_contain_text(text)
        expect(page.locator("meter").first).to_be_visible()
        page.goto("about:blank")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_page(opener: Opener, fish_dashboard: str, width: int) -> None:
    page = opener(viewport={"width": width, "height": 800})
    for path in [path for _, path in NAV]:
        page.goto(f"{fish_dashboard}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        if path == "/":
            plan = page.locator(".picture:visible")
            assert plan.evaluate("plan => plan.scrollWidth <= plan.clientWidth")
            assert plan.locator("svg").evaluate("svg => svg.clientWidth / svg.viewBox.baseVal.width") > 0.95
        if width == 1280:
            assert page.evaluate("document.querySelector('.bar').offsetHeight") < 60, "one line"
