"""Client of a schema registry: Confluent's REST API, which Apicurio and others answer too, and Apicurio's own.

Sources: https://docs.confluent.io/platform/current/schema-registry/develop/api.html and Apicurio Registry's
``/apis/registry/v3`` (3.0.9) and ``v2``.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from headrace.errors import DeclarationError, FormatError, RegistryUnavailable
from headrace.http_client import HttpClient, HttpResponse, NoResponse
from headrace.retry import Backoff

_JSON = "application/vnd.schemaregistry.v1+json, application/json"
_AVRO_TYPES = frozenset(
    {"record", "enum", "fixed", "array", "map", "null", "boolean", "int", "long", "float", "double", "bytes", "string"}
)


_Listed = Mapping[str, Any]  # a reference, as the registry lists it


class SchemaId(NamedTuple):
    """The id of a message's schema: a number, and whose.

    ``scheme`` is ``id`` for Confluent's API and for Apicurio's headers ``globalId`` or ``contentId``.
    """

    scheme: str
    number: int

    def __str__(self) -> str:
        return f"{self.scheme} {self.number}"


class Reference(NamedTuple):
    """A schema that another one uses, by the name it uses it under."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """A schema as the registry holds it.

    Attributes:
        kind: ``AVRO``, ``JSON`` or ``PROTOBUF``.
        text: the schema itself.
        references: the schemas it uses, all the way down, each before those that use it.
    """

    kind: str
    text: str
    references: tuple[Reference, ...] = ()


class SchemaRegistry:
    """Schemas by their ids and ids by their schemas, each asked for once. Safe to use from any thread.

    Args:
        url: of Confluent's API (``http://registry:8081``, ``http://apicurio:8080/apis/ccompat/v7``); a user and a
            password may stand in it. HEADRACE_SCHEMA_REGISTRY_URL where it is None.
        auth: ``("user", "password")``, ``"user:password"`` or ``"Bearer token"``; HEADRACE_SCHEMA_REGISTRY_AUTH
            where it is None. Never shown, and never sent to another address that the registry points to.
        headers: further headers of every request.
        deadline: seconds after which a registry that does not answer counts as unavailable; until then it is asked
            again, with longer and longer pauses.
        timeout: seconds for one request.

    Raises:
        DeclarationError: no URL, or not one of HTTP.

    >>> SchemaRegistry("http://me:secret@127.0.0.1:8081/")
    SchemaRegistry('http://127.0.0.1:8081')
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        auth: str | tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: float = 2.0,
        timeout: float = 5.0,
    ) -> None:
        address = url or os.environ.get("HEADRACE_SCHEMA_REGISTRY_URL", "")
        parts = urllib.parse.urlsplit(address.rstrip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DeclarationError(
                "no schema registry is given" if not address else "the schema registry's URL is not one of HTTP",
                advice="Give registry='http://host:8081' or set HEADRACE_SCHEMA_REGISTRY_URL.",
            )
        self.url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        inside = (
            (urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or ""))
            if parts.username
            else None
        )
        given = auth or inside or os.environ.get("HEADRACE_SCHEMA_REGISTRY_AUTH")
        self._headers = {"Accept": _JSON, **(headers or {}), **_authorization(given)}
        self._deadline = deadline
        self._client = HttpClient(timeout)
        self._lock = threading.Lock()
        self._schemas: dict[SchemaId, RegisteredSchema] = {}
        self._ids: dict[tuple[str, str, str], int] = {}
        self._core: str | None = None

    def __repr__(self) -> str:
        return f"SchemaRegistry({self.url!r})"

    def schema(self, schema_id: SchemaId) -> RegisteredSchema:
        """Return the schema of an id, from memory after the first time: an id never changes its meaning.

        Raises:
            FormatError: the registry does not have it, or refuses.
            RegistryUnavailable: the registry did not answer in time and the schema is not in memory.
        """
        with self._lock:
            known = self._schemas.get(schema_id)
        if known is not None:
            return known
        found = self._by_id(schema_id.number) if schema_id.scheme == "id" else self._by_apicurio_id(schema_id)
        with self._lock:
            return self._schemas.setdefault(schema_id, found)

    def register(self, subject: str, text: str, kind: str = "AVRO") -> int:
        """Return the id of a schema under a subject, which gets it as its newest version where it is new.

        Raises:
            FormatError: the registry refuses: not compatible with the versions before, not allowed, not a schema.
            RegistryUnavailable: the registry did not answer in time.
        """
        return self._id_of((subject, kind, text), "/versions", f"the subject «{subject}»")

    def lookup(self, subject: str, text: str, kind: str = "AVRO") -> int:
        """Return the id of a schema that a subject already has.

        Raises:
            FormatError: it does not have this schema.
            RegistryUnavailable: the registry did not answer in time.
        """
        return self._id_of((subject, kind, text), "", f"this schema of the subject «{subject}»")

    def versions(self, subject: str) -> list[int]:
        """Return a subject's versions, oldest first; none where it does not exist.

        Raises:
            FormatError, RegistryUnavailable: as `register`.
        """
        try:
            return list(map(int, self._json(f"/subjects/{_quoted(subject)}/versions", f"the subject «{subject}»")))
        except _Missing:
            return []

    def newest(self, subject: str) -> RegisteredSchema | None:
        """Return the newest schema of a subject; None where it does not exist.

        Raises:
            FormatError, RegistryUnavailable: as `register`.
        """
        try:
            answer = self._json(f"/subjects/{_quoted(subject)}/versions/latest", f"the subject «{subject}»")
        except _Missing:
            return None
        return self._registered(answer)

    # Confluent's API

    def _id_of(self, key: tuple[str, str, str], path: str, what: str) -> int:
        with self._lock:
            known = self._ids.get(key)
        if known is not None:
            return known
        subject, kind, text = key
        body = {"schema": text} if kind == "AVRO" else {"schema": text, "schemaType": kind}
        answer = self._json(f"/subjects/{_quoted(subject)}{path}", what, body=body)
        with self._lock:
            return self._ids.setdefault(key, int(answer["id"]))

    def _by_id(self, number: int) -> RegisteredSchema:
        return self._registered(self._json(f"/schemas/ids/{number}", f"schema id {number}"))

    def _registered(self, answer: Mapping[str, Any]) -> RegisteredSchema:
        references = tuple(_references(answer.get("references") or (), self._referred, seen=set()))
        return RegisteredSchema(answer.get("schemaType", "AVRO"), answer["schema"], references)

    def _referred(self, reference: _Listed) -> tuple[str, Sequence[_Listed]]:
        subject, version = reference["subject"], reference["version"]
        what = f"version {version} of the subject «{subject}»"
        answer = self._json(f"/subjects/{_quoted(subject)}/versions/{version}", what)
        return answer["schema"], answer.get("references") or ()

    # Apicurio's own API

    def _by_apicurio_id(self, schema_id: SchemaId) -> RegisteredSchema:
        path = f"{self._apicurio()}/ids/{schema_id.scheme}s/{schema_id.number}"
        text = self._text(path, str(schema_id))
        listed = json.loads(self._text(f"{path}/references", str(schema_id)))
        references = tuple(_references(listed, self._apicurio_referred, seen=set()))
        return RegisteredSchema(self._apicurio_kind(schema_id) or kind_of(text), text, references)

    def _apicurio(self) -> str:
        """Address of Apicurio's API, in the newest version that it serves."""
        if self._core is None:
            root = f"{self.url.partition('/apis/')[0]}/apis/registry"
            try:
                self._text(f"{root}/v3/system/info", "Apicurio's API")
                self._core = f"{root}/v3"
            except FormatError as error:
                if isinstance(error, RegistryUnavailable):
                    raise
                self._core = f"{root}/v2"
        return self._core

    def _apicurio_kind(self, schema_id: SchemaId) -> str | None:
        if not self._apicurio().endswith("/v3"):
            return None
        path = f"{self._apicurio()}/search/versions?{schema_id.scheme}={schema_id.number}"
        versions = json.loads(self._text(path, str(schema_id)))["versions"]
        return str(versions[0]["artifactType"]) if versions else None

    def _apicurio_referred(self, reference: _Listed) -> tuple[str, Sequence[_Listed]]:
        group, artifact = reference.get("groupId") or "default", reference["artifactId"]
        version = reference["version"]
        path = f"{self._apicurio()}/groups/{_quoted(group)}/artifacts/{_quoted(artifact)}/versions/{version}"
        what = f"version {version} of the artifact «{artifact}»"
        content = f"{path}/content" if self._apicurio().endswith("/v3") else path
        return self._text(content, what), json.loads(self._text(f"{path}/references", what))

    # Requests

    def _json(self, path: str, what: str, *, body: Mapping[str, Any] | None = None) -> Any:
        text = self._text(self.url + path, what, body=body)
        try:
            return json.loads(text)
        except ValueError as error:
            raise FormatError(
                f"the schema registry at {self.url} answers with something that is not JSON: {text[:100]!r}",
                advice="Give the address of its Confluent-compatible API (Apicurio: …/apis/ccompat/v7).",
            ) from error

    def _text(self, url: str, what: str, *, body: Mapping[str, Any] | None = None) -> str:
        """Return the body of the response, from the first attempt that gets one."""
        end = time.monotonic() + self._deadline
        backoff = Backoff(first=0.05, most=2.0)
        while True:
            pause = backoff.next()
            try:
                return self._attempt(url, what, body)
            except _Again as reason:
                if time.monotonic() + pause > end:
                    raise RegistryUnavailable(
                        f"the schema registry at {self.url} is needed for {what} and does not answer: {reason}",
                        advice="What needs it waits and asks again; start the registry, or check its address.",
                    ) from reason.__cause__
            time.sleep(pause)

    def _attempt(self, url: str, what: str, body: Mapping[str, Any] | None) -> str:
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
        try:
            response = self._client.request("GET" if data is None else "POST", url, headers=headers, body=data)
        except NoResponse as error:
            raise _Again(str(error)) from error
        if response.status >= 500 or response.status in (408, 429):
            raise _Again(f"status {response.status}")
        if response.status >= 300:
            raise self._refusal(response, what)
        try:
            return response.body.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"the schema registry's answer for {what} is not text") from error

    def _refusal(self, response: HttpResponse, what: str) -> FormatError:
        message, status = _message(response), response.status
        where = f"the schema registry at {self.url}"
        if status in (401, 403):
            advice = "Check the credentials: the auth argument or HEADRACE_SCHEMA_REGISTRY_AUTH."
            return FormatError(f"{where} refuses {what} to this user ({status}: {message})", advice=advice)
        if status == 404:
            advice = "Was the message written with another registry, or the schema deleted?"
            return _Missing(f"{where} does not have {what} (404: {message})", advice=advice)
        if status == 409:
            advice = "Change the table compatibly, lower the subject's compatibility level, or use another topic."
            return FormatError(f"{where} finds the schema incompatible with {what} (409: {message})", advice=advice)
        advice = "Its address must be that of the Confluent-compatible API." if status < 400 else ""
        return FormatError(f"{where} refuses {what} ({status}: {message})", advice=advice)


class _Again(Exception):
    """The registry may answer the same request later."""


class _Missing(FormatError):
    """The registry answers that it does not have it."""


def _references(
    listed: Sequence[_Listed], fetch: Callable[[_Listed], tuple[str, Sequence[_Listed]]], *, seen: set[str]
) -> Iterator[Reference]:
    """Yield the schemas that a schema uses, each behind those that it uses itself and only once."""
    for reference in listed:
        name = reference["name"]
        if name not in seen:
            seen.add(name)
            text, inner = fetch(reference)
            yield from _references(inner, fetch, seen=seen)
            yield Reference(name, text)


def kind_of(text: str) -> str:
    """Return the kind of a schema's text, where nobody says: Apicurio's version 2 does not.

    >>> kind_of('{"type": "record"}'), kind_of('{"type": "object"}'), kind_of('syntax = "proto3";')
    ('AVRO', 'JSON', 'PROTOBUF')
    """
    try:
        schema = json.loads(text)
    except ValueError:
        return "PROTOBUF"
    if isinstance(schema, dict):
        return "AVRO" if "$schema" not in schema and schema.get("type") in _AVRO_TYPES - {"string"} else "JSON"
    return "AVRO" if isinstance(schema, list | str) else "JSON"


def _authorization(auth: str | tuple[str, str] | None) -> dict[str, str]:
    if not auth:
        return {}
    if isinstance(auth, str) and auth.lower().startswith("bearer "):
        return {"Authorization": auth}
    pair = auth if isinstance(auth, str) else ":".join(auth)
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _message(response: HttpResponse) -> str:
    """Return the registry's own words."""
    text = response.body[:10_000].decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        return response.reason
    return str(answer.get("message") or answer.get("title") or text)[:1000] if isinstance(answer, dict) else text


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
