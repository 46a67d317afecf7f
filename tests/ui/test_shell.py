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
WRITTEN = ("/", "/topics")


@pytest.mark.parametrize("path", [path for _, path in NAV if path in WRITTEN])
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
            expect(page.locator("[data-live='topic:measured/rows']")).to_have_text(f"{count:,}")
        expect(page.locator("[data-live='model:weight/learned']")).to_have_text("6")
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
