"""A person on a cluster: the list of pipelines, one of them, a topic of others, a message; and axe on each page."""

from __future__ import annotations

import json

import pytest
from confluent_kafka import Producer
from playwright.sync_api import expect

import headrace as hr
from headrace.testing import KafkaBroker

from .conftest import Opener, cluster_dashboard
from .test_standards import axe, check_pages, packages  # noqa: F401 (fixtures)


@pytest.mark.slow
def test_the_pages_of_a_cluster(opener: Opener, broker: KafkaBroker, topic_prefix: str, axe: str) -> None:  # noqa: F811
    names = [f"{topic_prefix}.{number}" for number in range(6)]
    apps = []
    for name in names:
        app = hr.App(name, log=f"kafka://{broker.bootstrap}")
        rows = app.topic(f"{name}.points", append=True)
        line = app.model("line", hr.LinearRegression(), features=["x"], target="y")
        line.learn(rows)
        line.predict(rows).to(f"{name}.answers")
        apps.append(app)
    others = f"{topic_prefix}.clicks"
    broker.create_topic(others, 2)
    producer = Producer({"bootstrap.servers": broker.bootstrap})

    def send(first: int, end: int) -> None:
        for number in range(first, end):
            producer.produce(others, json.dumps({"id": number}).encode(), partition=number % 2)
        assert producer.flush(30) == 0

    send(0, 250)
    for app in apps[1:]:
        with app.start() as running:
            running.append(f"{app.name}.points", [{"x": 1.0, "y": 2.0}])
    with apps[0].start() as running, cluster_dashboard(f"kafka://{broker.bootstrap}") as url:
        running.append(f"{names[0]}.points", [{"x": float(n), "y": 2.0 * n} for n in range(20)])
        running.wait(60)
        page = opener()
        page.goto(f"{url}/")
        state = page.locator(f"[data-live='pipeline:{names[0]}/state']")
        expect(state).to_have_text("running")
        expect(page.locator(f"[data-live='pipeline:{names[1]}/state']")).to_have_text("stopped")
        page.get_by_role("link", name=names[0], exact=True).click()
        expect(page.locator("[data-live='log/state']")).to_have_text("running")
        expect(page.locator("[data-live='model:line/learned']:visible").first).to_contain_text("20")
        page.get_by_role("link", name="Health", exact=True).click()
        page.get_by_text("Where a round's time goes").wait_for()
        assert f"pipeline={names[0]}" in page.url
        # One that others write: followed, filtered, a message, back in time.
        page.goto(f"{url}/topics/{others}")
        page.get_by_role("button", name="Follow").click()
        send(250, 260)
        page.get_by_role("link", name="1:129", exact=True).wait_for()
        page.locator("#filter").fill("id = 4")
        page.get_by_role("button", name="Show").first.click()
        page.get_by_role("link", name="0:2", exact=True).click()
        page.get_by_role("heading", name=f"{others} 0:2").wait_for()
        page.goto(f"{url}/topics/{others}?at={others}:1")
        page.get_by_text("As it was at").wait_for()
        # One who comes without a choice is asked.
        page.goto(f"{url}/models")
        page.get_by_label("pipelines have logs on this cluster").fill(names[0])
        page.get_by_role("button", name="Show").click()
        page.get_by_role("link", name="line", exact=True).click()
        page.get_by_role("heading", name="line", exact=True).wait_for()
        assert f"pipeline={names[0]}" in page.url
        paths = ["/", f"/?pipeline={names[0]}", "/topics", "/models", f"/topics/{others}", f"/topics/{others}/0:2"]
        check_pages(opener, url, axe, [*paths, f"/health?pipeline={names[1]}", f"/models/line?pipeline={names[0]}"])
    page.goto("about:blank")
