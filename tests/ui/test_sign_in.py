"""Who may look, and who may change: keys and their cookie, other sites, other hosts, passwords."""

from __future__ import annotations

from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

import pytest

import headrace as hr
from headrace.log import open_log
from headrace.registry.plans import record_plan
from headrace.serve.keys import KeyFile
from tests.serve.client import Client

from .conftest import Opener, dashboard_of

BROWSER = {"Accept": "text/html,application/xhtml+xml"}
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys")


@pytest.fixture
def wrong_key(keys: KeyFile) -> str:
    """A key that may not look."""
    return keys.create("asker", ["predict"])[1]


@pytest.fixture
def locked(fish_log: Path, keys: KeyFile, wrong_key: str) -> Iterator[tuple[Client, str]]:
    """A dashboard that needs a key, and one with the scope `read`."""
    _, key = keys.create("reader", ["read"])
    with dashboard_of(fish_log, keys=keys) as url:
        client = Client(url.removesuffix("/ui"))
        yield client, key
        client.close()


@pytest.fixture
def opened(fish_dashboard: str) -> Iterator[Client]:
    client = Client(fish_dashboard.removesuffix("/ui"))
    yield client
    client.close()


def test_a_person_signs_in_and_comes_to_the_page_that_was_asked_for(
    opener: Opener, locked: tuple[Client, str], wrong_key: str
) -> None:
    client, key = locked
    page = opener()
    opener.expected += ["401: ", "403: "]
    page.goto(f"{client.url}/ui/topics?internal=yes")
    assert page.url.startswith(f"{client.url}/ui/sign-in?next=")
    for wrong, said in (("hr_nobody_x", "Not taken"), (wrong_key, "scope")):
        page.fill("#key", wrong)
        page.click("text=Sign in >> visible=true >> nth=-1")
        page.locator("[role=alert]", has_text=said).wait_for()
        assert page.locator("#key").input_value() == "", "a key never comes back in a page"
    page.fill("#key", key)
    page.press("#key", "Enter")
    page.wait_for_url("**/ui/topics?internal=yes")
    page.locator("#topics").wait_for()
    assert page.evaluate("document.cookie") == ""


def test_the_cookie_is_for_this_site_and_no_script(locked: tuple[Client, str]) -> None:
    client, key = locked
    got = client.post("/ui/sign-in", urlencode({"key": key, "next": "/ui/topics"}).encode(), FORM)
    assert (got.status, got.headers["location"]) == (303, "/ui/topics")
    cookie = SimpleCookie(got.headers["set-cookie"])["headrace"]
    assert cookie["httponly"] and cookie["samesite"] == "strict" and cookie["path"] == "/ui" and not cookie["secure"]
    there = {"Cookie": f"headrace={cookie.value}", **BROWSER}
    assert client.get("/ui/topics", there).status == 200
    assert client.get("/ui/topics", {"Cookie": "headrace=hr_a_b", **BROWSER}).status == 303
    out = client.post("/ui/sign-out", b"", {**FORM, **there})
    assert out.status == 303 and SimpleCookie(out.headers["set-cookie"])["headrace"].value == ""
    elsewhere = client.post("/ui/sign-in", urlencode({"key": key, "next": "//elsewhere.example/"}).encode(), FORM)
    assert elsewhere.headers["location"] == "/ui/"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://elsewhere.example"},
    ],
)
def test_a_change_from_elsewhere_is_refused(locked: tuple[Client, str], headers: dict[str, str]) -> None:
    client, key = locked
    got = client.post("/ui/sign-in", urlencode({"key": key}).encode(), headers)
    assert got.status == 403 and "set-cookie" not in got.headers


def test_another_host_is_refused(opened: Client) -> None:
    """A name that an attacker lets point here (DNS rebinding) is not a name of this machine's."""
    for path in ("/ui/", "/ui/topics", "/ui/events", "/ui/topics/weight-diff/0"):
        assert opened.get(path, {"Host": "attacker.example", **BROWSER}).status == 421, path
    port = opened.url.rpartition(":")[2]
    assert opened.get("/ui/", {"Host": f"localhost:{port}", **BROWSER}).status == 200


def test_a_page_runs_nothing_that_stands_in_it(opened: Client) -> None:
    got = opened.get("/ui/", BROWSER)
    policy = got.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert got.headers["x-frame-options"] == "DENY" and got.headers["x-content-type-options"] == "nosniff"
    assert opened.get("/ui/static/..%2Fsite.py").status == 404
    assert opened.get("/ui/vendor/README").status == 404


def test_a_password_is_on_no_page(tmp_path: Path) -> None:
    app = hr.App("shop", log=tmp_path / "shop.headrace")
    database = app.postgres("postgresql://me:hunter2@db.example:5432/shop", tables=[r"public\.orders"])
    database["public.orders"].select("a").to("big")
    log = open_log(str(tmp_path / "shop.headrace"), writer=True)
    with log.transaction() as transaction:
        record_plan(log, transaction, "shop", app.plan().graph().to_dict())
    log.close()
    with dashboard_of(tmp_path / "shop.headrace") as url:
        client = Client(url.removesuffix("/ui"))
        for path in ("/ui/", "/ui/topics", "/ui/sign-in"):
            got = client.get(path, BROWSER)
            assert got.status == 200 and b"hunter2" not in got.body, path
        client.close()
