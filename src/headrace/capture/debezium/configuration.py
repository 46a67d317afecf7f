"""Reading a connector's configuration: JSON of Kafka Connect, a ``.properties`` file, or a mapping.

Placeholders ``${provider:path:key}`` are filled as Kafka Connect's config providers do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import javaproperties

from headrace.errors import DeclarationError

MASK = "********"

# As Debezium itself masks (`Configuration.PASSWORD_PATTERN`), and what else is called so.
_SECRET = re.compile(
    r".*(secret|password|passwd|passphrase|token|apikey|api\.key|jaas\.config|user\.info|credentials(\.json)?|connection\.?string|private\.key)$",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]+(?=@)")
_KEY_VALUE = re.compile(r"(?i)\b(password|secret|token)(\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s;,&]+)")
# ``ConfigTransformer.DEFAULT_PATTERN`` of Apache Kafka.
_PLACEHOLDER = re.compile(r"\$\{([^}:]*):(([^}]*?):)?([^}]*?)\}")
_OUTER = frozenset({"name", "config", "tasks", "type", "initial_state"})


@dataclass(frozen=True, slots=True)
class Configuration:
    """A connector's configuration, as texts.

    Attributes:
        properties: name -> value; values may be secrets.
        where: the file, or what else it came from.
        provided: names of properties whose values a provider gave: they are shown as secrets are.

    >>> Configuration({"database.password": "s3cret"}, "connector.json")
    Configuration(connector.json: 1 property)
    """

    properties: Mapping[str, str] = field(repr=False)
    where: str
    provided: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        many = len(self.properties)
        return f"Configuration({self.where}: {many} {'property' if many == 1 else 'properties'})"

    def get(self, name: str, default: str = "") -> str:
        """Return a value without the blanks around it."""
        return self.properties.get(name, default).strip()

    def shown(self, name: str) -> str:
        """Return a value as it may be shown.

        >>> Configuration({"database.password": "s3cret"}, "here").shown("database.password")
        '********'
        """
        value = self.properties.get(name, "")
        return MASK if name in self.provided or is_secret(name) else without_secrets(value)

    def with_properties(self, more: Mapping[str, str]) -> Configuration:
        """Return the configuration with other values of some properties."""
        left = self.provided - more.keys()
        return Configuration({**self.properties, **more}, self.where, left)


def is_secret(name: str) -> bool:
    """Return whether the values of a property are never shown.

    >>> is_secret("database.password"), is_secret("value.converter.basic.auth.user.info"), is_secret("database.user")
    (True, True, False)
    """
    return _SECRET.fullmatch(name) is not None


def without_secrets(value: str) -> str:
    """Return a value without the passwords that it spells.

    >>> without_secrets("http://ann:pass@registry"), without_secrets("username=ann password='x y';")
    ('http://ann:********@registry', 'username=ann password=********;')
    """
    return _KEY_VALUE.sub(rf"\1\2{MASK}", _USER_INFO.sub(rf"\1:{MASK}", value))


def read_configuration(source: str | Path | Mapping[str, Any] | Configuration) -> Configuration:
    """Read a configuration from a file, or take it from a mapping.

    Args:
        source: Kafka Connect's JSON, with or without the outer ``name`` and ``config``; a file of Java's properties
            if it is no JSON; the mapping that such JSON is; or what was read already.

    Raises:
        DeclarationError: it cannot be read; with every mistake of its form, and no value that may be secret.
    """
    if isinstance(source, Configuration):
        return source
    if isinstance(source, Mapping):
        where, given = "the configuration", _from_json(source, "the configuration")
    else:
        where, given = str(source), _from_file(Path(source))
    mistakes: list[str] = []
    taken, provided = _provided(given, mistakes)
    _refuse(where, mistakes)
    return Configuration(taken, where, frozenset(provided))


def _refuse(where: str, mistakes: list[str]) -> None:
    if mistakes:
        told = "".join(f"\n    {mistake}" for mistake in mistakes) if len(mistakes) > 1 else f" {mistakes[0]}"
        raise DeclarationError(f"{where} cannot be read:{told}")


def _from_file(path: Path) -> dict[str, str]:
    try:
        raw = path.read_bytes()
    except IsADirectoryError as error:
        raise DeclarationError(f"{path} is a directory", advice="Name the connector's file.") from error
    except OSError as error:
        raise DeclarationError(
            f"the configuration {path} cannot be read: {error.strerror}",
            advice="Name a connector's .json or .properties.",
        ) from error
    text = _decoded(raw)
    if path.suffix == ".json" or (path.suffix != ".properties" and text.lstrip().startswith("{")):
        return _from_json(_parsed(text, path), str(path))
    return _from_properties(text, str(path))


def _decoded(raw: bytes) -> str:
    """Return the text: UTF-8, or the Latin-1 of Java before version 9."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _parsed(text: str, path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        at = (
            f", line {error.lineno}, column {error.colno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        raise DeclarationError(f"{path} is no JSON{at}", advice="Mend it, or name it .properties.") from error
    if not isinstance(found, Mapping):
        raise DeclarationError(f"{path} holds no JSON object", advice='Write {"name": …, "config": {…}}.')
    return found


class _Pairs(dict[str, Any]):
    """An object of JSON that knows which of its names stood in it twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        first = dict(reversed(pairs))
        self.twice = [name for name, value in first.items() if self[name] != value]


def _from_json(found: Mapping[str, Any], where: str) -> dict[str, str]:
    mistakes = [f"«{name}» stands there twice, with two values" for name in getattr(found, "twice", ())]  # of a mapping
    inner = found.get("config")
    if isinstance(inner, Mapping):
        mistakes += [f"«{name}» stands beside «config»; put it inside" for name in found if name not in _OUTER]
        mistakes += [
            f"«{name}» stands there twice, with two values" for name in getattr(inner, "twice", ())
        ]  # likewise
        name, own = found.get("name"), inner.get("name")
        if name is not None and own is not None and name != own:
            mistakes.append(f"it has two names, «{name}» and «{own}»")
        values = {**({} if name is None else {"name": name}), **inner}
    else:
        values = dict(found)
    taken = {}
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            mistakes.append(f"«{name}» is {_kind(value)}; every value is a text")
        else:
            taken[name.strip()] = str(value).lower() if isinstance(value, bool) else str(value)
    _refuse(where, mistakes)
    return taken


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else "no text"


def _from_properties(text: str, where: str) -> dict[str, str]:
    taken: dict[str, str] = {}
    mistakes = []
    try:
        for entry in javaproperties.parse(text):
            if not isinstance(entry, javaproperties.KeyValue):
                continue
            name, value = entry.key, entry.value
            if taken.get(name, value) != value:
                mistakes.append(f"«{name}» stands there twice, with two values")
            taken[name] = value
    except javaproperties.InvalidUEscapeError as error:
        raise DeclarationError(f"{where} cannot be read: {error.escape} is no \\uXXXX") from error
    _refuse(where, mistakes)
    return taken


# -- providers --------------------------------------------------------------------------------------------------------

# What the worker of Kafka Connect says, which is not there: the names that its manual uses.
_STANDARD = {"file": "FileConfigProvider", "env": "EnvVarConfigProvider", "dir": "DirectoryConfigProvider"}
_STANDARD |= {"directory": "DirectoryConfigProvider"}


@dataclass(frozen=True, slots=True)
class _Provider:
    """A config provider of Apache Kafka.

    Attributes:
        kind: its class, without the package.
        allowed: paths that it may read; nothing: all.
        names: environment variables that it may read.
    """

    kind: str
    allowed: tuple[Path, ...] = ()
    names: re.Pattern[str] = re.compile(".*")

    def value(self, path: str, key: str) -> str:
        """Return what is asked for.

        Raises:
            ValueError: saying why it cannot be had.
        """
        if self.kind == "EnvVarConfigProvider":
            if path or self.names.fullmatch(key) is None:
                raise ValueError("the provider may not read it")
            if key not in os.environ:
                raise ValueError("the environment has no such variable")
            return os.environ[key]
        if not path:
            raise ValueError("it names no file: write ${NAME:PATH:KEY}")
        place = Path(path)
        if self.allowed and not any(place.resolve().is_relative_to(allowed) for allowed in self.allowed):
            raise ValueError("the provider may not read it: allowed.paths")
        try:
            if self.kind == "DirectoryConfigProvider":
                if Path(key).name != key:
                    raise ValueError("it names no file of the directory")
                return _decoded((place / key).read_bytes())
            values = _from_properties(_decoded(place.read_bytes()), path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except DeclarationError as error:
            raise ValueError(error.message) from error
        if key not in values:
            raise ValueError(f"{path} has no «{key}»")
        return values[key]


def _providers(given: Mapping[str, str], mistakes: list[str]) -> dict[str, _Provider]:
    """Return the providers by their names: those that the configuration declares, and the standard ones."""
    found = {name: _Provider(kind) for name, kind in _STANDARD.items()}
    for name in (name.strip() for name in given.get("config.providers", "").split(",") if name.strip()):
        prefix = f"config.providers.{name}."
        kind = given.get(f"{prefix}class", "").rpartition(".")[2]
        if kind not in _STANDARD.values():
            said = f"«{kind}»" if kind else "not there"
            mistakes.append(f"{prefix}class is {said}; known are {', '.join(sorted(set(_STANDARD.values())))}")
            continue
        allowed = given.get(f"{prefix}param.allowed.paths", "")
        paths = tuple(Path(path.strip()).resolve() for path in allowed.split(",") if path.strip())
        try:
            names = re.compile(given.get(f"{prefix}param.allowlist.pattern", ".*"))
        except re.error as error:
            mistakes.append(f"{prefix}param.allowlist.pattern is no regular expression: {error}")
            continue
        found[name] = _Provider(kind, paths, names)
    return found


def _provided(given: Mapping[str, str], mistakes: list[str]) -> tuple[dict[str, str], set[str]]:
    """Return the properties with their placeholders filled, and the names of those that had any."""
    providers = _providers(given, mistakes)
    taken, provided = dict(given), set()
    for name, value in given.items():
        if name.startswith("config.providers") or "${" not in value:
            continue
        filled = _PLACEHOLDER.sub(lambda found, of=name: _filled(found, of, providers, mistakes), value)  # type: ignore[misc]  # of is bound to the loop's name
        if filled != value:
            taken[name] = filled
            provided.add(name)
    return taken, provided


def _filled(found: re.Match[str], name: str, providers: Mapping[str, _Provider], mistakes: list[str]) -> str:
    provider = providers.get(found[1])
    if provider is None:
        mistakes.append(f"«{name}» asks the provider «{found[1]}», which config.providers does not have")
        return found[0]
    try:
        return provider.value(found[3] or "", found[4])
    except ValueError as error:
        mistakes.append(f"«{name}» asks for {found[0]}: {error}")
        return found[0]
