"""What the server says of itself: OpenAPI, tried by schemathesis; the interactive page, without the internet."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .client import FISH, SEEDS, Client, fish, serving

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(fish(tmp_path_factory.mktemp("served") / "fish.headrace"), FISH) as (_, client):
        yield client.url


@pytest.fixture
def client(url: str) -> Any:
    """A connection of the test's own: one that another test leaves idle for 30 s is closed."""
    with contextlib.closing(Client(url)) as client:
        yield client


def test_every_route_is_described(client: Client) -> None:
    paths = client.get("/openapi.json").json["paths"]
    found = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert found == {
        "GET /",
        "GET /prediction",
        "POST /train",
        "GET /models",
        "POST /models/{model}/predict",
        "GET /metrics",
        "GET /v2",
        "GET /v2/health/live",
        "GET /v2/health/ready",
        "GET /v2/models/{model}",
        "GET /v2/models/{model}/ready",
        "POST /v2/models/{model}/infer",
        "GET /v2/models/{model}/versions/{version}",
        "GET /v2/models/{model}/versions/{version}/ready",
        "POST /v2/models/{model}/versions/{version}/infer",
    }
    names = [parameter["name"] for parameter in paths["/prediction"]["get"]["parameters"]]
    assert names == ["length", "height", "species", "at_least", "deadline"]
    assert paths["/prediction"]["get"]["parameters"][2]["schema"]["enum"] == ["salmon", "walleye"]


CONFIG = """
[checks.not_a_server_error]
# A deadline that comes first is 504: the position asked for is not learned yet.
expected-statuses = ["2xx", "3xx", "4xx", "504"]

# What a description in JSON Schema cannot say: a shape goes with as much data, a model has these inputs.
[[operations]]
include-path-regex = "/infer$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404", "422", "504"]

# … and that bytes are an Arrow stream.
[[operations]]
include-path-regex = "/predict$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "422", "504"]
"""
HOOKS = """
import schemathesis

@schemathesis.serializer("application/vnd.apache.arrow.stream")
def as_bytes(context, value):
    return value.data if hasattr(value, "data") else str(value).encode()
"""


@pytest.mark.parametrize("examples", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing(tmp_path: Path, examples: int) -> None:
    """Hundreds of requests made from the description, right ones and wrong ones, in every part of them."""
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    (tmp_path / "hooks.py").write_text(HOOKS)
    app = fish(tmp_path / "fish.headrace")
    with serving(app, FISH, deadline=0.02, longest_deadline=0.05) as (_, client):
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{client.url}/openapi.json"]
        command += ["--max-examples", str(examples), "--workers", "1", "--seed", "1", "--no-color"]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280, env=environment)
        assert done.returncode == 0, done.stdout[-6000:]
        assert client.get("/prediction", **SEEDS).status == 200


def test_the_page_needs_nothing_from_elsewhere(client: Client) -> None:
    page = client.get("/docs").body.decode()
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert assets
    for asset in assets:
        assert asset.startswith("/"), asset
        assert client.get(asset).status == 200
    assert "http" not in re.sub(r"http://127\.0\.0\.1[^\"']*", "", page)


def test_a_browser_asks_a_model_on_the_page(client: Client) -> None:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api")
    asked: list[str] = []
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{client.url}/docs")
        page.click("text=/prediction")
        page.click("text=Try it out")
        for name, value in {"length": "86.37", "height": "18.74"}.items():
            page.fill(f"tr[data-param-name={name}] input", value)
        page.select_option("tr[data-param-name=species] select", "salmon")
        page.click("button.execute")
        page.wait_for_selector(".live-responses-table .response .response-col_description pre")
        shown = page.inner_text(".live-responses-table .response .response-col_description")
        browser.close()
    assert str(client.get("/prediction", **SEEDS).json["Weight"]) in shown
    assert [url for url in asked if not url.startswith((client.url, "data:"))] == []
