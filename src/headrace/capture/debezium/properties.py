"""What a property of a connector's configuration is: its name, its type, and what it does here."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from headrace.capture.debezium.expressions import expressions, split_list
from headrace.errors import DeclarationError


class State(enum.StrEnum):
    """What becomes of a property here."""

    DONE = "done"
    HARMLESS = "harmless"
    REFUSED = "refused"
    NOT_YET = "not yet"

    @property
    def runs(self) -> bool:
        """Return whether a capture can run with it."""
        return self in (State.DONE, State.HARMLESS)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a property, or one value of it, does here.

    Attributes:
        written: it changes how Debezium's events are written from a log, and nothing of what is in the log.
    """

    state: State
    text: str
    written: bool = False


def done(text: str) -> Meaning:
    return Meaning(State.DONE, text)


def written(text: str) -> Meaning:
    return Meaning(State.DONE, f"In the events of «topics cat --format debezium-json»: {text}", written=True)


def harmless(text: str) -> Meaning:
    return Meaning(State.HARMLESS, text)


def refused(text: str) -> Meaning:
    return Meaning(State.REFUSED, text)


def not_yet(text: str) -> Meaning:
    return Meaning(State.NOT_YET, f"Not supported yet. {text}")


DEFAULT = harmless("The default, which is what happens here.")


class Kind(enum.StrEnum):
    """The type of a property's value."""

    TEXT = "text"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    MILLISECONDS = "milliseconds"
    NUMBER = "number"
    WORD = "word"  # one of those allowed
    LIST = "list"
    WORDS = "list of words"  # each one of those allowed
    REGEX = "regex"
    REGEXES = "list of regexes"
    CLASS = "Java class"
    SECRET = "secret"


_PLACEHOLDER = re.compile(r"<([a-z. ]+)>")
_DIGITS = ("length", "digits")
# Digests of Java that Python has too.
_ALGORITHM = r"(?i:md5|sha|sha-?1|sha-(?:224|256|384|512|512/224|512/256)|sha3-(?:224|256|384|512))"
_PARTS = {**dict.fromkeys(_DIGITS, r"\d+"), "algorithm": _ALGORITHM}


@dataclass(frozen=True)
class Property:
    """One property, or a family of them whose names have parts in ``<>``.

    Attributes:
        default: as Debezium or Kafka Connect has it; None where there is none.
        meaning: what it does here, whatever its value.
        values: what it does where its value is one of these, in lower case.
        allowed: the values of a `Kind.WORD`.
        minimum, maximum: of a number.
        form: a regular expression that the whole of a text has to match, and what it means in words.
        required: Debezium itself refuses a configuration without it.

    >>> mask = Property("column.mask.with.<length>.chars", Kind.REGEXES, None, done("Masks."))
    >>> mask.names("column.mask.with.12.chars"), mask.names("column.mask.with.x.chars")
    (True, False)
    """

    name: str
    kind: Kind
    default: str | None
    meaning: Meaning
    values: Mapping[str, Meaning] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int = 2**63 - 1
    form: tuple[str, str] | None = None
    required: bool = False

    @property
    def is_family(self) -> bool:
        """Return whether it stands for many names."""
        return "<" in self.name

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = _PLACEHOLDER.split(self.name)
        texts = [re.escape(part) if at % 2 == 0 else _PARTS.get(part, ".+") for at, part in enumerate(parts)]
        return re.compile("".join(texts))

    def names(self, name: str) -> bool:
        """Return whether it is called so."""
        return self._pattern.fullmatch(name) is not None

    def of(self, value: str) -> Meaning:
        """Return what it does here with this value.

        >>> Property("slot.failover", Kind.BOOLEAN, "false", not_yet("…")).of("FALSE").state
        <State.HARMLESS: 'harmless'>
        """
        said = value.strip().lower()
        if said in self.values:
            return self.values[said]
        if self.kind is Kind.WORDS:
            worse = [self.values[word] for word in listed(said) if word in self.values]
            if found := next((meaning for meaning in worse if not meaning.state.runs), None):
                return found
        is_default = self.default is not None and said == self.default.lower()
        return DEFAULT if is_default and not self.meaning.state.runs else self.meaning

    @property
    def summary(self) -> Meaning:
        """Return what it does here for any value, with what is otherwise for some."""
        told: dict[Meaning, list[str]] = {}
        for value, meaning in self.values.items():
            told.setdefault(meaning, []).append(f"«{value}»")
        more = "".join(f" {', '.join(values)} ({said.state}): {said.text}" for said, values in told.items())
        return Meaning(self.meaning.state, self.meaning.text + more)

    def check(self, value: str) -> str:
        """Return what is wrong with a value; nothing where it is right. What a secret is, is never said.

        >>> Property("database.port", Kind.INTEGER, "5432", done("…"), minimum=1).check("5432a")
        '«5432a» is no whole number'
        """
        text = value.strip()
        match self.kind:
            case Kind.BOOLEAN if text.lower() not in ("true", "false"):
                return f"«{value}» is neither true nor false"
            case Kind.INTEGER | Kind.MILLISECONDS:
                return _whole(text, self.minimum, self.maximum)
            case Kind.NUMBER if not re.fullmatch(r"[+-]?\d+(\.\d*)?", text):
                return f"«{value}» is no number"
            case Kind.WORD if text.lower() not in self.allowed:
                return f"«{value}» is none of {', '.join(self.allowed)}"
            case Kind.WORDS:
                unknown = [word for word in listed(text) if word.lower() not in self.allowed]
                return f"«{unknown[0]}» is none of {', '.join(self.allowed)}" if unknown else ""
            case Kind.REGEXES if self.name.endswith("include.list") and not split_list(text):
                return "it names nothing"
            case Kind.REGEX | Kind.REGEXES:
                return _expression(text, one=self.kind is Kind.REGEX)
        if self.form is not None and not re.fullmatch(self.form[0], text):
            return f"«{value}» is not {self.form[1]}"
        return "it is empty" if self.required and not text else ""


def _whole(text: str, minimum: int | None, maximum: int) -> str:
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        return f"«{text}» is no whole number"
    if int(text) > maximum:
        return f"{text} is more than {maximum}"
    return f"{text} is less than {minimum}" if minimum is not None and int(text) < minimum else ""


def _expression(text: str, *, one: bool) -> str:
    try:
        expressions(text, split=not one)
    except DeclarationError as error:
        return error.message
    return ""


def listed(value: str) -> list[str]:
    """Return the items of a list that is separated by commas.

    >>> listed(" a, b,,c ")
    ['a', 'b', 'c']
    """
    return [item.strip() for item in value.split(",") if item.strip()]


@dataclass(frozen=True, slots=True)
class Component:
    """A converter, a transform or a predicate of Kafka Connect, by its Java class.

    Attributes:
        classes: its full names; where there are two for keys and values, both.
        meaning: what it does here.
        properties: those that stand behind its prefix.
    """

    classes: tuple[str, ...]
    meaning: Meaning
    properties: tuple[Property, ...] = ()

    @property
    def name(self) -> str:
        """Return the class without its package.

        >>> Component(("org.apache.kafka.connect.transforms.MaskField$Key",), done("…")).name
        'MaskField'
        """
        return self.classes[0].rpartition(".")[2].partition("$")[0]

    def is_called(self, name: str) -> bool:
        """Return whether a configuration names it so: by the full class, the short one, or that without its last word.

        >>> json = Component(("org.apache.kafka.connect.json.JsonConverter",), done("…"))
        >>> json.is_called("Json"), json.is_called("JsonConverter"), json.is_called("Jso")
        (True, True, False)
        """
        short = [full.rpartition(".")[2] for full in self.classes]
        return name in (*self.classes, *short) or name in {word.removesuffix("Converter") for word in short}

    def property(self, name: str) -> Property | None:
        """Return the property that stands behind the component's prefix."""
        return next((known for known in self.properties if known.names(name)), None)
