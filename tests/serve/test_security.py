"""Who may ask what: keys, tokens, limits, TLS; and that nothing is open by mistake."""

from __future__ import annotations

import base64
import datetime
import hmac
import json
import logging
import ssl
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from headrace.errors import DeclarationError
from headrace.serve.exchange import Problem, Request
from headrace.serve.keys import LOOK_SECONDS, KeyFile
from headrace.serve.security import Gate
from headrace.serve.service import PredictionService
from headrace.serve.settings import ServeSettings
from tests.waiting import wait_until

from .client import FISH, SEEDS, Client, fish, headrace, serving

SECRET = "a secret of more than thirty-two characters"


def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "fish.headrace.keys")


def test_a_key_is_known_by_its_hash_only(tmp_path: Path) -> None:
    keys = key_file(tmp_path)
    key, text = keys.create("till", ["predict"])
    stored = keys.path.read_text()
    assert text.rpartition("_")[2] not in stored
    assert text not in stored
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert keys.find(text) == key
    for wrong in (text[:-1], text + "x", f"hr_{key.id}_", f"hr_{'0' * 12}_x", "", "hr", text.replace("hr_", "xx_")):
        assert keys.find(wrong) is None
    keys.revoke(key.id)
    assert keys.find(text) is None


def test_others_may_not_read_the_file(tmp_path: Path) -> None:
    keys = key_file(tmp_path)
    keys.create("till", ["predict"])
    keys.path.chmod(0o644)
    with pytest.raises(DeclarationError, match="others may read"):
        KeyFile(keys.path)


MAY = {
    ("predict", "GET", "/prediction"): 200,
    ("predict", "POST", "/train"): 403,
    ("predict", "GET", "/metrics"): 403,
    ("metrics", "GET", "/prediction"): 403,
    ("metrics", "GET", "/models"): 403,
    ("metrics", "POST", "/train"): 403,
    ("metrics", "GET", "/metrics"): 200,
    ("train", "GET", "/prediction"): 403,
    ("train", "GET", "/metrics"): 403,
    ("train", "POST", "/train"): 409,
    ("admin", "GET", "/prediction"): 200,
    ("admin", "GET", "/metrics"): 200,
    ("admin", "POST", "/train"): 409,
}


def test_scopes_say_what_a_key_may_do(tmp_path: Path) -> None:
    keys = key_file(tmp_path)
    texts = {scope: keys.create(scope, [scope])[1] for scope in ("predict", "train", "metrics", "admin")}
    with serving(fish(tmp_path / "fish.headrace"), FISH) as (_, client):
        for (scope, method, path), status in MAY.items():
            for header in ({"Authorization": f"Bearer {texts[scope]}"}, {"X-API-Key": texts[scope]}):
                query = SEEDS if path == "/prediction" else {}
                got = client.ask(method, path, None, header, **query)
                assert got.status == status, (scope, path, got.body)
        nobody = client.get("/prediction", **SEEDS)
        assert (nobody.status, nobody.headers["www-authenticate"]) == (401, 'Bearer realm="headrace"')
        assert client.get("/prediction", {"X-API-Key": texts["predict"][:-1]}, **SEEDS).status == 401
        # A load balancer asks whether it lives, without a key.
        assert client.get("/v2/health/live").status == 200
        # A key that is taken away is refused by the server that runs.
        keys.revoke(texts["predict"].split("_")[1])
        header = {"X-API-Key": texts["predict"]}
        wait_until(lambda: client.get("/prediction", header, **SEEDS).status == 401)


def test_a_first_key_closes_a_server_that_was_open(tmp_path: Path) -> None:
    with serving(fish(tmp_path / "fish.headrace"), FISH) as (_, client):
        assert client.get("/prediction", **SEEDS).status == 200
        key, text = key_file(tmp_path).create("first", ["predict"])
        wait_until(lambda: client.get("/prediction", **SEEDS).status == 401)
        assert client.get("/prediction", {"X-API-Key": text}, **SEEDS).status == 200
        key_file(tmp_path).revoke(key.id)
        wait_until(lambda: client.get("/prediction", {"X-API-Key": text}, **SEEDS).status == 401)


def test_a_server_that_was_started_with_a_key_stays_closed_without_being_asked(tmp_path: Path) -> None:
    key, text = key_file(tmp_path).create("only", ["predict"])
    with serving(fish(tmp_path / "fish.headrace"), FISH) as (_, client):
        key_file(tmp_path).revoke(key.id)
        for headers in ({"Host": "localhost"}, {"X-API-Key": text}):
            wait_until(lambda headers=headers: client.get("/prediction", headers, **SEEDS).status == 401)
        assert client.post("/train", b"", {"Host": "localhost"}).status == 401
        key_file(tmp_path).path.unlink()
        time.sleep(LOOK_SECONDS)
        assert client.get("/prediction", {"Host": "localhost"}, **SEEDS).status == 401
        assert client.get("/v2/health/live").status == 200


def test_a_key_that_came_and_went_unseen_closes_an_open_server(tmp_path: Path) -> None:
    keys = key_file(tmp_path)
    keys.revoke(keys.create("before", ["predict"])[0].id)
    with serving(fish(tmp_path / "fish.headrace"), FISH) as (_, client):
        assert client.get("/prediction", **SEEDS).status == 200, "no key, and a file that does not change"
        keys.revoke(keys.create("brief", ["predict"])[0].id)
        wait_until(lambda: client.get("/prediction", **SEEDS).status == 401)


def test_a_worker_that_is_started_again_goes_by_the_start_of_its_server(tmp_path: Path) -> None:
    keys = key_file(tmp_path)

    def open_with(at_start: str | None) -> bool:
        return Gate(ServeSettings(keys_at_start=at_start), KeyFile(keys.path)).open

    assert (open_with(None), open_with(""), open_with("some")) == (True, True, False)
    keys.revoke(keys.create("brief", ["predict"])[0].id)
    assert (open_with(None), open_with(keys.identity()), open_with("")) == (True, True, False)
    keys.create("till", ["predict"])
    assert (open_with(None), open_with(keys.identity()), open_with("")) == (False, False, False)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda path: path.write_text("{"),
    "another object": lambda path: path.write_text('{"keys": [{"id": 1}]}'),
    "a hash that is no text": lambda path: path.write_text(
        json.dumps({"keys": [{"id": "a", "name": "", "scopes": [], "sha256": 7, "created": ""}]})
    ),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "others may read it": lambda path: path.chmod(0o644),
    "a folder": lambda path: (path.unlink(), path.mkdir(mode=0o700)),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_of_keys_that_cannot_be_read_closes_the_server(tmp_path: Path, case: str) -> None:
    now = [1000.0]
    keys = KeyFile(tmp_path / "fish.headrace.keys", clock=lambda: now[0])
    gates = [Gate(ServeSettings(), keys)]
    _, text = keys.create("till", ["predict"])
    gates.append(Gate(ServeSettings(), keys))
    call = Request({"headers": [(b"host", b"localhost"), (b"x-api-key", text.encode())]}, None, {}, 0)  # type: ignore[arg-type]
    UNREADABLE[case](keys.path)
    now[0] += LOOK_SECONDS
    for gate in gates:
        for _ in range(2):  # what was read before does not count a second later, nor in between
            with pytest.raises(Problem) as raised:
                gate.authorize(call, "predict")
            assert raised.value.status == 503
        gate.authorize(call, "")
    with pytest.raises(DeclarationError):
        KeyFile(keys.path)


def token(secret: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    whole = {"exp": time.time() + 3600, "scope": "predict", "aud": "fish", **claims}
    return jwt.encode({name: value for name, value in whole.items() if value is not None}, secret, algorithm)


TOKENS: dict[str, tuple[str, int]] = {
    "good": (token(), 200),
    "scopes in a list": (token(scope=None, scopes=["predict", "train"]), 200),
    "another scope": (token(scope="train"), 403),
    "a scope of somebody else's": (token(scope="root"), 403),
    "expired": (token(exp=time.time() - 1), 401),
    "without an end": (token(exp=None), 401),
    "for others": (token(aud="bread"), 401),
    "signed by others": (token("another secret of more than thirty-two"), 401),
    "signed otherwise": (token(SECRET * 2, "HS512"), 401),
    "not signed": (token(None, "none"), 401),
    "no token": ("nonsense", 401),
}


def test_tokens(tmp_path: Path) -> None:
    options = {"jwt_secret": SECRET, "jwt_audience": "fish"}
    with serving(fish(tmp_path / "fish.headrace"), FISH, **options) as (_, client):
        for case, (text, status) in TOKENS.items():
            got = client.get("/prediction", {"Authorization": f"Bearer {text}"}, **SEEDS)
            assert got.status == status, (case, got.body)


def test_tokens_signed_by_a_private_key(tmp_path: Path) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    with serving(fish(tmp_path / "fish.headrace"), FISH, jwt_public_key=public) as (_, client):
        good = token(private.read_text(), "ES256", aud=None)
        assert client.get("/prediction", {"Authorization": f"Bearer {good}"}, **SEEDS).status == 200
        # The public key is no secret: what is signed with it as one is refused.
        head, body = good.split(".")[:2]
        weak = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
        signed = hmac.digest(public.read_bytes(), f"{weak}.{body}".encode(), "sha256")
        forged = f"{weak}.{body}.{base64.urlsafe_b64encode(signed).rstrip(b'=').decode()}"
        assert head != weak
        assert client.get("/prediction", {"Authorization": f"Bearer {forged}"}, **SEEDS).status == 401


def test_guessing_is_slowed_down(tmp_path: Path) -> None:
    _, text = key_file(tmp_path).create("till", ["predict"])
    with serving(fish(tmp_path / "fish.headrace"), FISH) as (_, client):
        found = [client.get("/prediction", {"X-API-Key": f"hr_{i:012x}_x"}, **SEEDS).status for i in range(25)]
        assert set(found[:20]) == {401}
        assert found[-1] == 429
        assert client.get("/prediction", {"X-API-Key": text}, **SEEDS).status == 429


def test_requests_of_one_key_are_limited(tmp_path: Path) -> None:
    keys = key_file(tmp_path)
    mine, yours = (keys.create(name, ["predict"])[1] for name in ("mine", "yours"))
    with serving(fish(tmp_path / "fish.headrace"), FISH, rate="5/hour") as (_, client):
        found = [client.get("/prediction", {"X-API-Key": mine}, **SEEDS) for _ in range(6)]
        assert [item.status for item in found] == [200] * 5 + [429]
        assert 0 < int(found[-1].headers["retry-after"]) <= 3600
        assert client.get("/prediction", {"X-API-Key": yours}, **SEEDS).status == 200


@pytest.mark.parametrize("path", ["/v2/models/weight/infer", "/models/weight/predict", "/train"])
def test_large_bodies_are_refused(tmp_path: Path, path: str) -> None:
    with serving(fish(tmp_path / "fish.headrace"), FISH, body_limit=1000) as (_, client):
        assert client.post(path, b"x" * 1001).status == 413
        other = Client(client.url)
        chunked = {"Transfer-Encoding": "chunked"}
        body = b"".join(b"64\r\n" + b"x" * 100 + b"\r\n" for _ in range(11)) + b"0\r\n\r\n"
        assert other.ask("POST", path, body, chunked).status == 413
        other.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "fish.example.org"}, 421),
        ({"Host": "127.0.0.1.example.org:80"}, 421),
        ({"Host": "localhost:9"}, 200),
        ({"Host": "[::1]"}, 200),
    ],
)
def test_without_keys_only_this_machine_is_answered(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    with serving(fish(tmp_path / "fish.headrace"), FISH) as (_, client):
        assert client.get("/prediction", headers, **SEEDS).status == status
        assert client.post("/train", b"", {"Origin": "http://evil.example.org"}).status == 403


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "open to others": ({"host": "0.0.0.0"}, "would let anybody ask"),
    "open to others by IPv6": ({"host": "::"}, "would let anybody ask"),
    "open to others by name": ({"host": "fish.example.org"}, "would let anybody ask"),
    "half of TLS": ({"tls_cert": "x.pem"}, "both a certificate and its key"),
    "a file that is not there": ({"tls_cert": "x.pem", "tls_key": "y.pem"}, "no file x.pem"),
    "a short secret": ({"jwt_secret": "short"}, "shorter than 32"),
    "a secret and a public key": ({"jwt_secret": SECRET, "jwt_public_key": __file__}, "not by both"),
    "algorithms of the other kind": ({"jwt_secret": SECRET, "jwt_algorithms": ("RS256",)}, "do not go with"),
    "no rate": ({"rate": "often"}, "rate='often'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_cannot_be(tmp_path: Path, case: str) -> None:
    options, told = REFUSED[case]
    log = tmp_path / "fish.headrace"
    with pytest.raises(DeclarationError, match=told) as raised:
        fish(log).start(serve=ServeSettings(port=0, **options))
    assert "secret of more" not in str(raised.value)
    assert not log.exists()


def test_with_a_key_others_may_be_let_in(tmp_path: Path) -> None:
    key_file(tmp_path).create("till", ["predict"])
    with fish(tmp_path / "fish.headrace").start(serve=ServeSettings(port=0, host="0.0.0.0")) as running:
        assert running.server is not None
        client = Client(f"http://127.0.0.1:{running.server.port}")
        assert client.get("/prediction", **SEEDS).status == 401
        client.close()


def test_secrets_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HEADRACE_SERVE_JWT_SECRET", SECRET)
    settings = ServeSettings(port=0)
    assert settings.jwt_secret is not None
    assert settings.jwt_secret.get_secret_value() == SECRET
    assert SECRET not in repr(settings)
    _, text = key_file(tmp_path).create("till", ["predict"])
    caplog.set_level(logging.DEBUG)
    others = ["uvicorn", "uvicorn.access", "uvicorn.error", "uvicorn.asgi", "asyncio", "headrace"]
    for name in others:
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "propagate", True)
        monkeypatch.setattr(logger, "level", 1)
    sent = [SECRET, text, text[:-1], token(), token(scope="train"), token(SECRET * 2)]
    with fish(tmp_path / "fish.headrace").start(serve=settings) as running:
        assert running.server is not None
        client = Client(running.server.url)
        for given in sent[1:]:
            client.get("/prediction", {"Authorization": f"Bearer {given}"}, **SEEDS)
            # Where people put a key that belongs into a header.
            for path in ("/prediction", "/nothing", f"/{given}", f"/v2/models/{given}"):
                client.get(path, {"X-API-Key": given}, api_key=given, length="x")
            client.post("/v2/models/weight/infer", {"inputs": given}, {"X-API-Key": given})
        monkeypatch.setattr(PredictionService, "predict", None)  # a defect, and what is logged of it
        assert client.get("/prediction", {"X-API-Key": text}, **SEEDS, api_key=text).status == 422
        assert client.get("/prediction", {"X-API-Key": text}, **SEEDS).status == 500
        client.close()
    assert "a request of '/prediction' failed" in caplog.text
    for given in sent:
        assert given not in caplog.text
        assert given not in str([record.__dict__ for record in caplog.records])


def test_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.create_default_context(cafile=cert)
    with fish(tmp_path / "fish.headrace").start(serve=ServeSettings(port=0, tls_cert=cert, tls_key=key)) as running:
        assert running.server is not None
        assert running.server.url.startswith("https://")
        client = Client(running.server.url, context=context)
        assert client.get("/v2/health/live").status == 200
        client.close()
    with pytest.raises(DeclarationError, match="cannot be used"):
        fish(tmp_path / "two.headrace").start(serve=ServeSettings(port=0, tls_cert=key, tls_key=cert))


def test_keys_from_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def keys(*arguments: str) -> Any:
        done = headrace(capfd, "keys", *arguments, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else done

    where = ("--log", str(tmp_path / "fish.headrace"))
    made = keys("create", "--scope", "predict", "--scope", "train", "--name", "till", *where)
    assert made["scopes"] == ["predict", "train"]
    found = key_file(tmp_path).find(made["key"])
    assert found is not None
    assert found.name == "till"
    (listed,) = keys("list", *where)
    assert (listed["id"], set(listed)) == (made["id"], {"id", "name", "scopes", "created"})
    assert datetime.datetime.fromisoformat(listed["created"]).tzinfo is not None
    assert keys("create", "--scope", "everything", *where).returncode == 2
    assert keys("revoke", made["id"], *where) == {"revoked": made["id"]}
    assert keys("revoke", made["id"], *where).returncode == 1
    assert keys("list", *where) == []
