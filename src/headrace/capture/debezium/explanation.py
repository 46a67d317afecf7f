"""What a configuration would do here: a line for each property, and every mistake at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from headrace.capture.debezium import connect, connector, transforms
from headrace.capture.debezium.configuration import Configuration
from headrace.capture.debezium.expressions import split_list
from headrace.capture.debezium.groovy import as_sql
from headrace.capture.debezium.properties import (
    DEFAULT,
    Component,
    Kind,
    Meaning,
    Property,
    State,
    done,
    listed,
    not_yet,
    refused,
)
from headrace.errors import DeclarationError, near

PROPERTIES: dict[str, tuple[Property, ...]] = {"Kafka Connect": connect.CONNECTOR, **connector.PROPERTIES}
_JSON = "org.apache.kafka.connect.json.JsonConverter"
_APART = (
    ("table.include.list", "table.exclude.list"),
    ("schema.include.list", "schema.exclude.list"),
    ("column.include.list", "column.exclude.list"),
    ("message.prefix.include.list", "message.prefix.exclude.list"),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One property of a configuration, or of the table of all.

    Attributes:
        value: as it may be shown; None where the line is of no configuration.
        default: as Debezium or Kafka Connect has it.
        part: the component that it belongs to, in the order in which rows go through it; "" for the connector's own.
        kind: the type of a component's property.
    """

    name: str
    value: str | None
    meaning: Meaning
    default: str | None = None
    part: str = ""
    kind: Kind | None = None

    @property
    def state(self) -> State:
        return self.meaning.state

    def as_dict(self) -> dict[str, str | None]:
        """Return the line as ``headrace capture explain --json`` prints it."""
        return {
            "property": self.name,
            "value": self.value,
            "state": self.state.value,
            "meaning": self.meaning.text,
            "default": self.default,
        }


@dataclass(frozen=True, slots=True)
class _Group:
    """The components that one property names, and the prefix that their own properties have.

    Attributes:
        names: property that lists them; for a converter, that which has its class.
        common: properties of each of them, whatever its class.
    """

    names: str
    known: tuple[Component, ...]
    common: tuple[Property, ...] = ()

    @property
    def is_converter(self) -> bool:
        return self.names.endswith(".converter")


GROUPS = (
    _Group("key.converter", connect.CONVERTERS),
    _Group("value.converter", connect.CONVERTERS),
    _Group("transforms", transforms.TRANSFORMS, transforms.COMMON),
    _Group("predicates", transforms.PREDICATES, transforms.COMMON[:1]),
)


def everything() -> Iterator[tuple[str, Line]]:
    """Yield a line for each property that there is, under the name of its section."""
    for section, properties in PROPERTIES.items():
        yield from ((section, Line(known.name, None, known.summary, known.default)) for known in properties)
    yield from (("Transforms", Line(own.name, None, own.summary, own.default)) for own in transforms.COMMON)
    for section, components in (
        ("Transforms", transforms.TRANSFORMS),
        ("Predicates", transforms.PREDICATES),
        ("Converters", connect.CONVERTERS),
        ("Post processors", transforms.POST_PROCESSORS),
    ):
        for component in components:
            (name, *_) = component.classes
            yield section, Line(name, None, component.meaning, part=name)
            for own in component.properties:
                yield section, Line(own.name, None, own.summary, own.default, name)


def explain(configuration: Configuration) -> list[Line]:
    """Return what each property of a configuration does here, and what is wrong: the connector's own first, then the
    converters, then the transforms in their order.
    """
    left = dict(configuration.properties)
    parts = list(itertools.chain.from_iterable(_group(configuration, group, left) for group in GROUPS))
    processors = _processors(configuration, left)
    own = [_own(configuration, name) for name in left]
    missing = [
        Line(known.name, "", refused("It is required, and is not there."), known.default)
        for properties in PROPERTIES.values()
        for known in properties
        if known.required and known.name not in configuration.properties
    ]
    lines = [*own, *missing, *processors, *parts]
    return [_beside(configuration, line) for line in lines]


def check(configuration: Configuration, *, on_kafka: bool = False) -> None:
    """Refuse a configuration that cannot be run here, saying everything at once.

    Args:
        on_kafka: the log is on Kafka, where messages are written by a format of ours, and not as Debezium's events.

    Raises:
        DeclarationError: with a line for each property that stops it.
    """
    lines = explain(configuration)
    if on_kafka:
        lines = [_on_kafka(line) for line in lines]
    stopping = [line for line in lines if not line.state.runs]
    if not stopping:
        return
    told = "".join(f"\n    {_told(line)}" for line in stopping)
    raise DeclarationError(
        f"{configuration.where} cannot be run here as it is:{told}",
        advice="«headrace capture explain» says what every property does here.",
    )


def _on_kafka(line: Line) -> Line:
    """Return a line as it is where the log is on Kafka."""
    value = (line.value or "").strip().lower()
    if not line.meaning.written or value == (line.default or "").lower():
        return line
    text = "On a Kafka log messages are written as the log's format has them, whatever this says."
    return replace(line, meaning=not_yet(text))


def _told(line: Line) -> str:
    value = f" = {line.value}" if line.value else ""
    return f"{line.name}{value}: {line.meaning.text}"


def _own(configuration: Configuration, name: str) -> Line:
    """Return the line of a property of the connector, or of Connect."""
    known = find(name)
    value = configuration.shown(name)
    if known is None:
        return Line(name, value, refused(f"There is no such property{near(name, _names())}."))
    return Line(name, value, _meaning(configuration, name, known), known.default)


def _meaning(configuration: Configuration, name: str, known: Property) -> Meaning:
    value = configuration.properties[name]
    wrong = known.check(value)
    if wrong:
        hidden = configuration.shown(name) != value
        return refused("The value is not as it has to be." if hidden else f"{wrong[0].upper()}{wrong[1:]}.")
    found = known.of(value)
    if known.is_family and not found.state.runs:
        return Meaning(found.state, found.text + near(name, _names()))
    if known.kind is Kind.REGEXES and (hint := _globbed(value)):
        return Meaning(found.state, f"{found.text} {hint}")
    return found


def _globbed(value: str) -> str:
    """Return what an expression means that looks like a file's pattern."""
    for expression in split_list(value):
        stem, star, rest = expression.rpartition("*")
        if star and not rest and stem[-1:].isidentifier() and stem[-2:-1] != "\\":
            return (
                f"«{expression}» matches {stem[:-1]} and any number of «{stem[-1]}»; names that begin so are {stem}.*"
            )
    return ""


def find(name: str) -> Property | None:
    """Return the property of the connector or of Connect that is called so.

    >>> find("slot.name").kind, find("column.mask.with.5.chars").name, find("slot.nam")
    (<Kind.TEXT: 'text'>, 'column.mask.with.<length>.chars', None)
    """
    families = []
    for known in itertools.chain.from_iterable(PROPERTIES.values()):
        if known.name == name:
            return known
        if known.is_family and known.names(name):
            families.append(known)
    return max(families, key=lambda known: len(known.name.partition("<")[0]), default=None)


def _names() -> list[str]:
    return [known.name for properties in PROPERTIES.values() for known in properties]


# -- components -------------------------------------------------------------------------------------------------------


def _group(configuration: Configuration, group: _Group, left: dict[str, str]) -> Iterator[Line]:
    """Yield the lines of converters, transforms or predicates, and take their properties out of what is left."""
    if group.is_converter:
        own = _taken(left, f"{group.names}.")
        own.pop(f"{group.names}.plugin.version", None)
        named = left.pop(group.names, None)
        if named is not None or own:
            yield from _component(configuration, group, group.names, group.names, own, default=_JSON)
        return
    names = listed(configuration.get(group.names))
    for name in dict.fromkeys(names):
        prefix = f"{group.names}.{name}"
        own = _taken(left, f"{prefix}.")
        chosen = f"{prefix}.type"
        own.pop(chosen, None)
        yield from _component(configuration, group, chosen, prefix, own)
    for name in [name for name in left if name.startswith(f"{group.names}.")]:
        del left[name]
        who = name.removeprefix(f"{group.names}.").partition(".")[0]
        text = f"«{who}» is not one of {group.names}={','.join(names) or '…'}{near(who, names)}."
        yield Line(name, configuration.shown(name), refused(text))


def _taken(left: dict[str, str], prefix: str) -> dict[str, str]:
    return {name: left.pop(name) for name in list(left) if name.startswith(prefix)}


def _component(
    configuration: Configuration,
    group: _Group,
    chosen: str,
    prefix: str,
    own: Mapping[str, str],
    *,
    default: str | None = None,
) -> Iterator[Line]:
    """Yield the line of a component's class, and those of its properties."""
    name = configuration.get(chosen, default or "")
    component = next((known for known in group.known if known.is_called(name)), None)
    yield Line(chosen, configuration.shown(chosen) or name, _class_meaning(name, component, group), default, prefix)
    for full in own:
        meaning, known = _sub(configuration, full, prefix, component, group)
        default, kind = (None, None) if known is None else (known.default, known.kind)
        yield Line(full, configuration.shown(full), meaning, default, prefix, kind)
    missing = [
        required
        for required in (component.properties if component else ())
        if required.required and f"{prefix}.{required.name}" not in own
    ]
    yield from (
        Line(f"{prefix}.{required.name}", "", refused("It is required, and is not there."), required.default, prefix)
        for required in missing
    )


def _class_meaning(name: str, component: Component | None, group: _Group) -> Meaning:
    if component is not None:
        return component.meaning
    if not name:
        return refused("It is required, and is not there.")
    known = [alias for one in group.known for alias in (*one.classes, one.name)]
    return refused(f"This class is not known here, and code in Java cannot be loaded{near(name, known)}.")


def _sub(
    configuration: Configuration, full: str, prefix: str, component: Component | None, group: _Group
) -> tuple[Meaning, Property | None]:
    """Return what a component's property does, and what it is."""
    name = full.removeprefix(f"{prefix}.")
    properties = (*group.common, *(component.properties if component else ()))
    known = next((known for known in properties if known.names(name)), None)
    if component is None:
        return refused("It belongs to a class that is not known here."), None
    if known is None:
        text = f"{component.name} has no such property{near(name, [known.name for known in properties])}."
        return refused(text), None
    meaning = _meaning(configuration, full, known)
    # What cannot be run is said of the class; its properties only have to be right.
    if not component.meaning.state.runs and meaning == DEFAULT:
        meaning = component.meaning
    return meaning, known


def _processors(configuration: Configuration, left: dict[str, str]) -> list[Line]:
    """Return the lines of custom converters and post processors, whose names are prefixes of their own."""
    lines: list[Line] = []
    for listing, known in (("converters", ()), ("post.processors", transforms.POST_PROCESSORS)):
        group = _Group(listing, known)
        for name in listed(configuration.get(listing)):
            own = _taken(left, f"{name}.")
            own.pop(f"{name}.type", None)
            lines += _component(configuration, group, f"{name}.type", name, own)
    return lines


# -- properties that depend on each other -----------------------------------------------------------------------------


def _beside(configuration: Configuration, line: Line) -> Line:
    """Return a line as it is beside the other properties."""
    given = configuration.properties
    meaning = line.meaning
    for include, exclude in _APART:
        if line.name == exclude and include in given:
            meaning = refused(f"{include} is there too: only one of them can be.")
    if line.name == "transforms" and configuration.get("transforms"):
        names = listed(configuration.get("transforms"))
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        meaning = refused(f"«{twice[0]}» is there twice.") if twice else done("Rows go through them in this order.")
    if line.name == "key.converter" and meaning.state.runs and not _alike(configuration):
        meaning = not_yet("On a Kafka log keys are written as values are.")
    numeric = line.name.endswith("converter.decimal.format") and (line.value or "").strip().lower() == "numeric"
    if numeric and transform_classes(configuration) not in ([], [transforms.FLATTENING]):
        meaning = not_yet("With transforms beside ExtractNewRecordState a decimal is base64.")
    if line.name.endswith(".predicate") and line.part:
        meaning = _predicate(configuration, line)
    if line.name.endswith((".condition", ".topic.expression")) and line.part and meaning.state.runs:
        meaning = _expression(configuration, line)
    return line if meaning is line.meaning else replace(line, meaning=meaning)


def _alike(configuration: Configuration) -> bool:
    """Return whether keys are converted as values are."""
    return _converter(configuration, "key.converter") == _converter(configuration, "value.converter")


def _converter(configuration: Configuration, prefix: str) -> tuple[str, str]:
    return converter_class(configuration, prefix), configuration.get(f"{prefix}.schemas.enable", "true").lower()


def converter_class(configuration: Configuration, prefix: str) -> str:
    """Return the full class of a converter; that of JSON where none is named."""
    name = configuration.get(prefix, _JSON)
    return next((known.classes[0] for known in connect.CONVERTERS if known.is_called(name)), name)


def transform_classes(configuration: Configuration) -> list[str]:
    """Return the full classes of the transforms, in their order."""
    names = [configuration.get(f"transforms.{name}.type") for name in listed(configuration.get("transforms"))]
    return [_full_class(name, transforms.TRANSFORMS) for name in names]


def predicate_classes(configuration: Configuration) -> list[str]:
    """Return the full classes of the predicates, in their order."""
    names = [configuration.get(f"predicates.{name}.type") for name in listed(configuration.get("predicates"))]
    return [_full_class(name, transforms.PREDICATES) for name in names]


def _full_class(name: str, known: Iterable[Component]) -> str:
    component = next((component for component in known if component.is_called(name)), None)
    if component is None:
        return name
    # Of two, for keys and values, a name means the one that ends like it.
    return next((full for full in component.classes if full.endswith(name)), component.classes[0])


def _expression(configuration: Configuration, line: Line) -> Meaning:
    """Return what an expression does; of one in another language, the SQL that takes its place."""
    language = configuration.get(f"{line.part}.language").lower()
    if language in ("", "sql"):
        return line.meaning
    sql = as_sql(configuration.get(line.name))
    said = f"In SQL: {sql}" if sql else "Write it in SQL, over before, after, source, op, topic, key, value and header"
    return refused(f"An expression of {language} is not run. {said}; and language=sql.")


def _predicate(configuration: Configuration, line: Line) -> Meaning:
    names = listed(configuration.get("predicates"))
    named = configuration.get(line.name)
    if named in names:
        return line.meaning
    return refused(f"«{named}» is not one of predicates={','.join(names) or '…'}{near(named, names)}.")
