"""The page at `/`: HTML for a browser, JSON for a program, and no more than one may know."""

from __future__ import annotations

import html.parser
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sklearn.linear_model import SGDRegressor

import headrace as hr
from headrace.serve.keys import KeyFile

from .client import FISH, Client, fish, serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


class Page(html.parser.HTMLParser):
    """What a page says, where it leads, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("href", "src", "action", "style"):
                self.loads.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(fish(tmp_path_factory.mktemp("served") / "fish.headrace"), FISH) as (_, client):
        yield client


def test_a_browser_is_given_a_page_that_leads_to_everything(opened: Client) -> None:
    got = opened.get("/", BROWSER)
    assert got.status == 200
    assert got.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in got.headers["content-security-policy"]
    page = Page(got.body.decode())
    for said in ("fish", f"Served by Headrace {hr.__version__}", "weight", "0/0:5", "Length, Height, Species"):
        assert said in page.text, said
    assert "LinearRegression(intercept=True, tolerance=1e-07)" in page.text
    assert page.loads == ["data:,"] and "script" not in page.tags, "a page of its own, without requests"
    assert not re.search(r"url\(|@import", got.body.decode())
    for link in page.links:
        assert not urlsplit(link).netloc
        assert opened.get(f"/{link}").status == 200, link
    assert [link for link in page.links if link.startswith("prediction?")]


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html;q=0.1, application/json"])
def test_a_program_is_given_json(opened: Client, accept: str | None) -> None:
    got = opened.get("/", None if accept is None else {"Accept": accept})
    assert got.headers["content-type"] == "application/json"
    assert "accept" in got.headers["vary"]
    found = got.json
    assert (found["name"], found["headrace"], found["needs_key"]) == ("fish", hr.__version__, False)
    (model,) = found["models"]
    assert (model["model"], model["version"], model["position"], model["ready"]) == ("weight", 1, "0/0:5", True)
    assert model["features"] == ["Length", "Height", "Species"] and model["target"] == "Weight"
    assert opened.get(model["examples"][0]).status == 200
    paths = {(path["method"], path["path"]): path["scope"] for path in found["paths"]}
    assert paths["GET", "/prediction"] == "predict" and paths["GET", "/metrics"] == "metrics"
    assert paths["GET", "/v2"] is None and len(paths) == 14
    assert found["links"] == {
        "docs": "/docs",
        "openapi": "/openapi.json",
        "metrics": "/metrics",
        "ready": "/v2/health/ready",
    }
    assert opened.ask("HEAD", "/").status == 200
    assert opened.post("/").status == 405


def test_a_closed_server_tells_a_stranger_what_its_description_tells(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    keys = KeyFile(log.with_name("fish.headrace.keys"))
    texts = {scope: keys.create(scope, [scope])[1] for scope in ("predict", "metrics")}
    app = fish(log)
    app.model("secret", SGDRegressor(), features=["Length"], target="Weight").learn(app.topic("measured"))
    with serving(app, FISH) as (_, client):
        for headers in ({}, {"X-API-Key": texts["metrics"]}):
            found = client.get("/", headers).json
            assert found["needs_key"] is True
            assert [sorted(model) for model in found["models"]] == [["examples", "model"]]
            assert "secret" not in str(found["models"]) and "LinearRegression" not in str(found)
            assert "0/0" not in client.get("/", {**headers, **BROWSER}).body.decode()
        known = client.get("/", {"X-API-Key": texts["predict"]}).json
        assert [model["model"] for model in known["models"]] == ["weight", "secret"]
        assert client.get("/", {"Authorization": f"Bearer {texts['predict']}x"}).status == 401


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>&\"'"
    app = hr.App(name.replace("/", "|"), log=tmp_path / "a.headrace")
    model = app.model(name, SGDRegressor(), features=["<b>ö"], target="<i>")
    model.learn(app.topic("measured", append=True))
    model.serve("/ask", inputs={"a&b": "<b>ö"})
    with serving(app) as (_, client):
        page = Page(client.get("/", BROWSER).body.decode())
    assert not {"script", "b", "i"} & page.tags
    assert name in page.text and "<b>ö" in page.text
    assert "it cannot predict yet" in page.text
    assert "ask?a%26b=1.0" in page.links
