"""Columns of PostgreSQL as Debezium's connector writes them: the schema of each, and its values as JSON.

https://debezium.io/documentation/reference/3.6/connectors/postgresql.html#postgresql-data-types. A column is described
by what the catalog said of it when its rows were captured (the metadata ``postgres.facts`` of their batches), and its
values are as the capture keeps them: numbers, days and instants as Arrow has them, the rest in PostgreSQL's text form.

What is odd in Debezium 3.6.3 is odd here too; each such place says so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.errors import DeclarationError
from headrace.formats import base64_columns, decimals, timestamps
from headrace.formats.base64_columns import spans
from headrace.formats.json_text import TEXT, enclosed, escaped, in_quotes, joined
from headrace.plain_values import civil, days_of, is_text, times_of

Schema = dict[str, Any]
Write = Callable[[pa.Array], pa.Array]
Patterns = tuple[re.Pattern[str], ...]

PLACEHOLDER = "__debezium_unavailable_value"
_DECIMAL = "org.apache.kafka.connect.data.Decimal"
_TIME = "io.debezium.time."
_DAY_US = 86_400_000_000
_EXACT = Context(prec=200_000)  # more digits than a numeric has


@dataclass(frozen=True, slots=True)
class TypeOptions:
    """The connector's properties that change how values are written, with its defaults.

    Attributes:
        decimals: ``decimal.handling.mode``; ``times``: ``time.precision.mode``; ``intervals``:
            ``interval.handling.mode``; ``binary``: ``binary.handling.mode``; ``hstore``: ``hstore.handling.mode``.
        unknown: ``include.unknown.datatypes``.
        money_digits: ``money.fraction.digits``.
        placeholder: ``unavailable.value.placeholder``.
        null_as_default: ``value.converter.replace.null.with.default``: a NULL is written as the column's default.
        excluded, masked, truncated, propagated: of ``column.exclude.list`` and its like.
        hashed: of ``column.mask.hash.…``: algorithm, salt, whether it is v2, and the columns.
        numbers: ``value.converter.decimal.format`` is numeric: a decimal is a number of JSON; ``key_numbers``: in keys.
        types_propagated: of ``datatype.propagate.source.type``, by ``schema.table.type``.
        fields: ``field.name.adjustment.mode``.
    """

    decimals: str = "precise"
    times: str = "adaptive"
    intervals: str = "numeric"
    binary: str = "bytes"
    hstore: str = "json"
    unknown: bool = False
    money_digits: int = 2
    placeholder: str = PLACEHOLDER
    null_as_default: bool = True
    excluded: Patterns = ()
    included: Patterns = ()
    masked: tuple[tuple[int, Patterns], ...] = ()
    truncated: tuple[tuple[int, Patterns], ...] = ()
    propagated: Patterns = ()
    hashed: tuple[tuple[str, str, bool, Patterns], ...] = ()
    types_propagated: Patterns = ()
    fields: str = "none"
    numbers: bool = False
    key_numbers: bool = False

    @property
    def of_keys(self) -> TypeOptions:
        """Return how keys are written: no column is left out of them, masked or cut."""
        none: dict[str, Any] = dict.fromkeys(
            ("excluded", "included", "masked", "truncated", "propagated", "hashed", "types_propagated"), ()
        )
        return replace(self, numbers=self.key_numbers, **none)

    @property
    def placeholder_bytes(self) -> bytes:
        """Return what stands for bytes that were not sent: ``hex:`` says them in hexadecimal."""
        text = self.placeholder
        return bytes.fromhex(text.removeprefix("hex:")) if text.startswith("hex:") else text.encode()

    @property
    def placeholder_text(self) -> str:
        """Return what stands for a text that was not sent."""
        return self.placeholder_bytes.decode("utf-8", "replace")

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> TypeOptions:
        """Return the options that properties of a connector say.

        >>> TypeOptions.of({"decimal.handling.mode": "string"}).decimals
        'string'
        """

        def flag(name: str, default: bool) -> bool:
            return str(properties.get(name, default)).strip().lower() == "true"

        return cls(
            decimals=properties.get("decimal.handling.mode", "precise").lower(),
            times=properties.get("time.precision.mode", "adaptive").lower(),
            intervals=properties.get("interval.handling.mode", "numeric").lower(),
            binary=properties.get("binary.handling.mode", "bytes").lower(),
            hstore=properties.get("hstore.handling.mode", "json").lower(),
            unknown=flag("include.unknown.datatypes", False),
            money_digits=int(properties.get("money.fraction.digits", "2")),
            placeholder=properties.get("unavailable.value.placeholder", PLACEHOLDER),
            null_as_default=flag("value.converter.replace.null.with.default", True),
            excluded=_patterns(properties.get("column.exclude.list", "")),
            included=_patterns(properties.get("column.include.list", "")),
            masked=_numbered(properties, "column.mask.with.{}.chars"),
            truncated=_numbered(properties, "column.truncate.to.{}.chars"),
            propagated=_patterns(properties.get("column.propagate.source.type", "")),
            hashed=tuple(_hashed(properties)),
            types_propagated=_patterns(properties.get("datatype.propagate.source.type", "")),
            fields=properties.get("field.name.adjustment.mode", "none").lower(),
            numbers=properties.get("value.converter.decimal.format", "base64").strip().lower() == "numeric",
            key_numbers=properties.get("key.converter.decimal.format", "base64").strip().lower() == "numeric",
        )


def _patterns(text: str) -> Patterns:
    """Return the expressions of a list: a comma of their own stands behind a backslash."""
    parts = [part.strip().replace("\\,", ",") for part in re.split(r"(?<!\\),", text)]
    return tuple(re.compile(part, re.IGNORECASE) for part in parts if part)


def _numbered(properties: Mapping[str, str], name: str) -> tuple[tuple[int, Patterns], ...]:
    """Return (number, patterns) of properties that have a number in their name."""
    before, after = name.split("{}")
    found = []
    for key, value in properties.items():
        number = key.removeprefix(before).removesuffix(after)
        if key.startswith(before) and key.endswith(after) and number.isdigit():
            found.append((int(number), _patterns(value)))
    return tuple(found)


_HASH = re.compile(r"column\.mask\.hash\.(v2\.)?([^.]+)\.with\.salt\.(.+)")


def _hashed(properties: Mapping[str, str]) -> Iterator[tuple[str, str, bool, Patterns]]:
    """Yield algorithm, salt, whether it is v2, and columns of properties whose names have these; v1 first."""
    found = [(match, value) for name, value in properties.items() if (match := _HASH.fullmatch(name)) is not None]
    for match, value in sorted(found, key=lambda pair: pair[0][1] or ""):
        yield match[2], match[3], match[1] is not None, _patterns(value)


def java_digest(algorithm: str) -> str | None:
    """Return Python's name of one of Java's digests; None where there is none.

    >>> java_digest("SHA-256"), java_digest("SHA3-512"), java_digest("SHA-512/256"), java_digest("SHA-0")
    ('sha256', 'sha3_512', 'sha512_256', None)
    """
    name = {"sha": "sha1"}.get(algorithm.lower(), algorithm.lower())
    name = name.replace("sha-", "sha").replace("sha3-", "sha3_").replace("/", "_")
    return name if name in hashlib.algorithms_available and name.startswith(("sha", "md5")) else None


def _any(patterns: Patterns, name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a type is written.

    Attributes:
        schema: of Kafka Connect, without what belongs to the column (whether it is optional, default, name).
        write: JSON of every value, null where the value is null.
        zero: what stands for a value of a NOT NULL column that is not known.
        read: PostgreSQL's text of values as the array that `write` takes.
        toast: what stands for a value that the stream left out, since it was not changed; null for most types.
        write_read: how values are written that a snapshot read, where Debezium has them from Java's database driver.
    """

    schema: Schema
    write: Write
    zero: str
    read: Write = field(default=lambda array: array)
    toast: str = "null"
    write_read: Write | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column as it is written.

    Attributes:
        field: its name in events.
        schema: its schema of Kafka Connect, with its name.
        write: JSON of every value, null where the value is null.
        null: JSON that stands for NULL.
        unknown: JSON that stands for what an old row does not say.
        toast: JSON that stands for a value that was left out.
        nan: JSON that stands for a NaN of ``numeric(p,s)``, which is null in the rows.
        write_read: as ``write``, of rows that a snapshot read.
    """

    name: str
    field: str
    schema: Schema
    write: Write
    null: str
    unknown: str
    toast: str
    nan: str
    write_read: Write

    def cells(self, array: pa.Array, *, unknown: bool = False, read: bool = False) -> pa.Array:
        """Return the JSON of every value.

        Args:
            unknown: a null says that the value is not known.
            read: a snapshot read the rows.
        """
        texts = (self.write_read if read else self.write)(array)
        return texts.fill_null(pa.scalar(self.unknown if unknown else self.null, TEXT)) if texts.null_count else texts


def columns(facts: Mapping[str, Any], options: TypeOptions) -> list[Column]:
    """Return the columns of a table that Debezium writes; those of types that it does not know are left out.

    Args:
        facts: of ``postgres.facts``.
    """
    table = f"{facts['schema']}.{facts['table']}"
    found = []
    for about in facts["columns"]:
        named = f"{table}.{about['name']}"
        if _any(options.excluded, named) or (options.included and not _any(options.included, named)):
            continue
        column = _column(about, named, options)
        if column is not None:
            found.append(column)
    _check_apart(table, found)
    return found


def _check_apart(table: str, found: Sequence[Column]) -> None:
    """Refuse two columns that have one name in events.

    Raises:
        DeclarationError: there are such columns.
    """
    called: dict[str, str] = {}
    for column in found:
        other = called.setdefault(column.field, column.name)
        if other != column.name:
            raise DeclarationError(
                f"columns «{other}» and «{column.name}» of {table} are both «{column.field}»",
                advice="Set field.name.adjustment.mode to avro_unicode or none, or exclude one of them.",
            )


def avro_name(name: str, mode: str, *, dots: bool) -> str:
    """Return a name as Avro allows it, as Debezium's ``schema.name.adjustment.mode`` and its like make it.

    Args:
        dots: they may be in it, as in the name of a schema.

    >>> avro_name("1 täg.x", "avro", dots=False), avro_name("1 täg.x", "avro", dots=True)
    ('_1_t_g_x', '_1_t_g.x')
    >>> avro_name("a_b é", "avro_unicode", dots=False), avro_name("a b", "none", dots=False)
    ('a_u005fb_u0020_u00e9', 'a b')
    """
    if mode == "none" or not name:
        return name
    escapes = mode == "avro_unicode"
    letters = "A-Za-z" if escapes else "A-Za-z_"
    first, rest = re.compile(f"[{letters}]"), re.compile(f"[{letters}0-9{'.' if dots else ''}]")
    units = name.encode("utf-16-be")
    found = ""
    for at in range(0, len(units), 2):
        code = int.from_bytes(units[at : at + 2], "big")
        character = chr(code)
        if (rest if at else first).fullmatch(character):
            found += character
            continue
        # Java's hexadecimal digits, of which Debezium fills up one or two only.
        digits = f"{code:x}"
        found += f"_u{'00' if len(digits) <= 2 else ''}{digits}" if escapes else "_"
        if not at and character.isdigit() and not escapes:
            found += character
    return found


def _column(about: Mapping[str, Any], named: str, options: TypeOptions) -> Column | None:
    kind = kind_of(about["type"], options)
    if kind is None:
        return None
    optional = not about["not_null"]
    default = _default(about, kind)
    mapper = _mapper(kind, about, named, options)
    schema = kind.schema
    if mapper.parameters:
        schema = {**schema, "parameters": {**schema.get("parameters", {}), **mapper.parameters}}
    # The connector knows nothing of a column that may be NULL; it is the converter that writes its default.
    null = default if default is not None and options.null_as_default else "null"
    unknown = null if optional else mapper.one(kind.zero if default is None else default)
    if about["type"]["name"] == "name":  # null while it streams, and zero where that must not be
        null = unknown
    if mapper.everything is not None:  # a NULL is masked, too
        null = unknown = mapper.everything
    write = mapper.all(_typed(kind, kind.write))
    nan = write(pa.array(["NaN"], TEXT))[0].as_py() if about["type"]["name"] == "numeric" else None
    called = avro_name(about["name"], options.fields, dots=False)
    return Column(
        about["name"],
        called,
        field_schema(schema, called, optional=optional, default=default),
        write,
        null,
        unknown,
        kind.toast if kind.toast == "null" and mapper.everything is None else mapper.one(kind.toast),
        nan or null,
        mapper.all(_typed(kind, kind.write_read or kind.write)),
    )


def _typed(kind: Kind, write: Write) -> Write:
    """Return what writes a column, too, where its values are texts: those of a domain are.

    What it cannot write is null, as it is in Debezium: one value must not end the events of a table.
    """

    def written(array: pa.Array) -> pa.Array:
        try:
            return write(kind.read(array) if is_text(array.type) else array)
        except _UNWRITABLE:
            if len(array) <= 1:
                return pa.nulls(len(array), TEXT)
            middle = len(array) // 2
            return pa.concat_arrays([written(array[:middle]), written(array[middle:])])

    return written


_UNWRITABLE = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class _Mapper:
    """What a column's values go through when they have been written.

    Attributes:
        parameters: that it adds to the schema.
        each: JSON of a value in place of the JSON that there was.
        everything: JSON in place of every value.
        size: bytes are cut before they are written, where it is not below 0.
    """

    parameters: Mapping[str, str] = field(default_factory=dict)
    each: Callable[[str], str] | None = None
    everything: str | None = None
    size: int = -1

    def one(self, text: str) -> str:
        """Return the JSON in place of one value's."""
        return self.everything or (text if self.each is None else self.each(text))

    def all(self, write: Write) -> Write:
        """Return what writes a column so."""
        if self.everything is not None:
            return partial(_masked, text=self.everything)
        if self.size >= 0:
            return lambda array: write(pc.binary_slice(array.cast(pa.large_binary()), 0, self.size))
        each = self.each
        return write if each is None else lambda array: by_value(write(array), each)


# What the server's JDBC driver takes for characters: others are not masked.
_CHARACTERS = frozenset({"text", "varchar", "bpchar", "name", "char"})


def _mapper(kind: Kind, about: Mapping[str, Any], named: str, options: TypeOptions) -> _Mapper:
    """Return what the first rule says that names the column: Debezium asks for them in this order."""
    type_ = about["type"]
    length, _ = _size(type_)
    characters = type_["name"] in _CHARACTERS or type_.get("kind") == "e"
    for most, patterns in options.truncated:
        if _any(patterns, named):
            return _truncating(kind, type_["name"], length, most)
    for stars, patterns in options.masked:
        if _any(patterns, named):
            return _Mapper({"masked": "true"}, everything=f'"{"*" * stars}"' if characters else None)
    of_type = f"{named.removesuffix(about['name'])}{type_['name']}"
    if _any(options.propagated, named) or _any(options.types_propagated, of_type):
        return _Mapper(_source_type(about))
    for algorithm, salt, second, patterns in options.hashed:
        if _any(patterns, named):
            hashing = partial(_hash, algorithm=java_digest(algorithm) or "", salt=salt, second=second, length=length)
            return _Mapper({"masked": "true"}, each=hashing if characters else None)
    return _Mapper()


def _truncating(kind: Kind, name: str, length: int, most: int) -> _Mapper:
    if length <= most:
        return _Mapper()
    parameters = {"truncateLength": str(most)}
    if kind.schema["type"] == "string":
        return _Mapper(parameters, each=partial(_cut, length=most))
    return _Mapper(parameters, size=most if name == "bytea" else -1)


def _masked(array: pa.Array, text: str) -> pa.Array:
    return pa.repeat(pa.scalar(text, TEXT), len(array))


def _cut(text: str, length: int) -> str:
    """Cut a JSON string to so many of Java's characters, of which those beyond the basic plane are two."""
    whole: str = json.loads(text)
    return java_string(whole.encode("utf-16-le")[: 2 * length].decode("utf-16-le", "ignore"))


def _hash(text: str, algorithm: str, salt: str, second: bool, length: int) -> str:
    """Return a JSON string's digest: of its bytes, or, as Debezium did first, of the object that Java writes."""
    whole: str = json.loads(text)
    hashed = whole.encode() if second else _java_object(whole)
    digest = hashlib.new(algorithm, salt.encode() + hashed, usedforsecurity=False).hexdigest()
    return f'"{digest[:length]}"'


def _java_object(text: str) -> bytes:
    """Return a text as Java's ObjectOutputStream writes it.

    https://docs.oracle.com/en/java/javase/17/docs/specs/serialization/protocol.html

    >>> _java_object("aé").hex()
    'aced000574000361c3a9'
    """
    units = text.encode("utf-16-be")
    characters = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
    # Zero is two bytes, and what is beyond the basic plane is two times three.
    body = b"".join(b"\xc0\x80" if unit == 0 else chr(unit).encode("utf-8", "surrogatepass") for unit in characters)
    long = len(body) > 0xFFFF
    return b"\xac\xed\x00\x05" + (b"\x7c" if long else b"\x74") + len(body).to_bytes(8 if long else 2, "big") + body


def _source_type(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters that ``column.propagate.source.type`` adds."""
    type_ = about["type"]
    length, scale = _size(type_)
    prefix = "__debezium.source.column."
    return {
        f"{prefix}type": type_.get("domain", type_["name"]).upper(),
        f"{prefix}length": str(length),
        f"{prefix}scale": str(scale),
        f"{prefix}name": about["name"],
    }


# Length and scale of types without a modifier, as the server's JDBC driver has them.
_SIZES = {
    "int2": (5, 0),
    "int4": (10, 0),
    "int8": (19, 0),
    "oid": (10, 0),
    "bool": (1, 0),
    "char": (1, 0),
    "float4": (8, 8),
    "float8": (17, 17),
    "numeric": (0, 0),
    "date": (13, 0),
    "time": (15, 6),
    "timetz": (21, 6),
    "timestamp": (29, 6),
    "timestamptz": (35, 6),
    "interval": (49, 6),
}


# The length of times without a fraction.
_NO_FRACTION = {"time": 8, "timetz": 14, "timestamp": 22, "timestamptz": 28}


def _size(about: Mapping[str, Any]) -> tuple[int, int]:
    in_array = "element" in about
    about = about.get("element", about)
    name, typmod = about["name"], about["typmod"]
    if name == "numeric" and typmod < 4 and in_array:
        return 131_089, 0
    if name in _NO_FRACTION and typmod >= 0:  # one digit is two, "bizarrely" says the driver
        return _NO_FRACTION[name] + (max(typmod, 2) + 1 if typmod else 0), typmod
    if name == "numeric" and typmod >= 4:
        return (typmod - 4) >> 16, (typmod - 4) & 0x7FF
    if name == "interval" and typmod >= 0:
        return 49, typmod & 0xFFFF
    if name in ("varchar", "bpchar") and typmod >= 4:
        return typmod - 4, 0
    if name in ("bit", "varbit") and typmod > 0:
        return typmod, 0
    return _SIZES.get(name, (2_147_483_647, 0))


def field_schema(schema: Schema, name: str | None, *, optional: bool, default: str | None = None) -> Schema:
    """Return a schema in the order in which Kafka's JsonConverter writes it.

    >>> field_schema({"type": "int32"}, "id", optional=False)
    {'type': 'int32', 'optional': False, 'field': 'id'}
    """
    first: Schema = {part: schema[part] for part in ("type", "fields", "items", "keys", "values") if part in schema}
    rest: Schema = {part: schema[part] for part in ("name", "version", "doc", "parameters") if part in schema}
    made: Schema = {**first, "optional": optional, **rest}
    if default is not None:
        made["default"] = json.loads(default)
    return made if name is None else {**made, "field": name}


# -- defaults ---------------------------------------------------------------------------------------------------------

# As PostgresDefaultValueConverter has them.
_LITERAL = re.compile(r"'([^']*(?:''[^']*)*)'")
_FUNCTION = re.compile(r"^[(]?[A-Za-z0-9_.]+\((?:.+(?:, ?.+)*)?\)")
_NOW = frozenset({"current_timestamp", "current_time", "current_date", "localtime", "localtimestamp"})
_GENERATED = {
    "bit": "00",
    "varbit": "0",
    "bool": "false",
    "bpchar": "",
    "varchar": "",
    "text": "",
    "numeric": "0.0",
    "float4": "0.0",
    "float8": "0.0",
    "int2": "0",
    "int4": "0",
    "int8": "0",
    "json": "{}",
    "jsonb": "{}",
    "xml": "",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "date": "1970-01-01",
    "time": "00:00:00",
    "timestamp": "1970-01-01 00:00:00",
    "timestamptz": "1970-01-01 00:00:00+00",
    "interval": "00:00:00",
}


def _default(about: Mapping[str, Any], kind: Kind) -> str | None:
    """Return the default as JSON; None where there is none, or Debezium does not evaluate it."""
    expression, type_ = about["default"], about["type"]
    if expression is None or "domain" in type_ or (type_["name"] not in _GENERATED and type_.get("kind") != "e"):
        return None
    text: str | None
    if type_.get("kind") == "e":
        match = re.fullmatch(r"'(.*)'::.+", expression, re.DOTALL)
        text = match[1] if match else None
    elif _FUNCTION.search(expression) or expression.lower() in _NOW:
        text = _GENERATED[type_["name"]]
    elif "'" in expression:
        literal = _LITERAL.search(expression)
        text = literal[1].replace("''", "'") if literal else None
    else:
        text = None if expression.startswith("NULL::") else expression.strip()
    if text is None or kind.schema["type"] == "struct":
        return None
    try:
        written: str | None = kind.write(kind.read(pa.array([text], TEXT)))[0].as_py()
    except (pa.ArrowException, ValueError, ArithmeticError):
        return None
    return written


# -- types ------------------------------------------------------------------------------------------------------------


def kind_of(about: Mapping[str, Any], options: TypeOptions) -> Kind | None:
    """Return how a type is written; None where Debezium leaves such columns out."""
    name = about["name"]
    if name in _VECTORS:
        return _of_a_vector(name, options)
    if "element" in about:
        return _array(about, options)
    if about.get("kind") == "e":
        labels = ",".join(about.get("labels", ()))
        return Kind(_named("string", "io.debezium.data.Enum", parameters={"allowed": labels}), quoted, '""')
    if about.get("kind", "b") in "bre" and name in _TYPES:
        return _TYPES[name](about, options)
    return _unknown(options, _with_doubles if name in _GEOMETRIC else None)


def _named(kind: str, name: str, **more: Any) -> Schema:
    return {"type": kind, "name": name, "version": 1, **more}


# Java's driver makes objects of these, whose text has Java's numbers.
_GEOMETRIC = frozenset({"line", "lseg", "box", "path", "polygon", "circle"})
_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9.]*(?:[eE][-+]?[0-9]+)?|Infinity|NaN)")


def _unknown(options: TypeOptions, java: Callable[[pa.Array], pa.Array] | None = None) -> Kind | None:
    """Types that Debezium does not know are their text's bytes, or nothing.

    Args:
        java: makes of PostgreSQL's texts what Java prints of the driver's objects.
    """
    if not options.unknown:
        return None
    binary = binary_kind(options)

    def write(array: pa.Array) -> pa.Array:
        return binary.write((array if java is None else java(array)).cast(pa.large_binary()))

    return Kind(binary.schema, write, binary.zero)


def _with_doubles(array: pa.Array) -> pa.Array:
    return by_value(array, lambda text: _NUMBER.sub(lambda match: java_double(float(match[0])), text))


def _number(kind: str, arrow: pa.DataType) -> Callable[[Mapping[str, Any], TypeOptions], Kind]:
    made = Kind({"type": kind}, lambda array: array.cast(TEXT), "0", lambda texts: texts.cast(arrow))
    return lambda *_: made


def _float(kind: str, arrow: pa.DataType) -> Callable[[Mapping[str, Any], TypeOptions], Kind]:
    made = Kind({"type": kind}, java_floats, "0.0", lambda texts: texts.cast(arrow))
    return lambda *_: made


def _bool(*_: Any) -> Kind:
    def read(texts: pa.Array) -> pa.Array:
        return pc.if_else(texts.is_valid(), pc.is_in(texts, pa.array(["t", "true"], TEXT)), None)

    return Kind({"type": "boolean"}, lambda array: array.cast(TEXT), "false", read)


def _text(schema: Schema, *, placeholder: bool = True) -> Callable[[Mapping[str, Any], TypeOptions], Kind]:
    def make(_: Mapping[str, Any], options: TypeOptions) -> Kind:
        return Kind(schema, quoted, '""', toast=java_string(options.placeholder_text) if placeholder else "null")

    return make


def _binary(_: Mapping[str, Any], options: TypeOptions) -> Kind:
    return binary_kind(options)


def binary_kind(options: TypeOptions) -> Kind:
    """Return how bytes are written."""
    mode = options.binary
    write: Write
    if mode == "hex":
        schema, write = {"type": "string"}, lambda array: in_quotes(_hex(array))
    else:
        schema = {"type": "bytes" if mode == "bytes" else "string"}
        write = partial(_base64, url=mode == "base64-url-safe")
    if mode == "bytes":
        toast = write(pa.array([options.placeholder_bytes], pa.large_binary()))[0].as_py()
    else:
        toast = java_string(options.placeholder_text) if mode == "hex" else "null"
    return Kind(schema, write, '""', _unescaped, toast)


def _base64(array: pa.Array, *, url: bool) -> pa.Array:
    texts = base64_columns.encode(array)
    if url:
        texts = pc.replace_substring(pc.replace_substring(texts, "+", "-"), "/", "_")
    return in_quotes(texts)


def _hex(array: pa.Array) -> pa.Array:
    return pa.array([None if value is None else value.hex() for value in array.to_pylist()], TEXT)


def _unescaped(texts: pa.Array) -> pa.Array:
    """Bytes of ``\\x0102``."""
    return pa.array(
        [None if text is None else bytes.fromhex(text[2:]) for text in texts.to_pylist()], pa.large_binary()
    )


# --- decimals ---

_SPECIAL = {"NaN": "NAN", "Infinity": "POSITIVE_INFINITY", "-Infinity": "NEGATIVE_INFINITY"}


def _numeric(about: Mapping[str, Any], options: TypeOptions) -> Kind:
    typmod = about["typmod"]
    if options.decimals == "double":
        return Kind({"type": "double"}, lambda array: java_floats(array.cast(TEXT).cast(pa.float64())), "0.0")
    if options.decimals == "string":
        zero = "0" if typmod < 4 else f"{Decimal(0).scaleb(-_scale(typmod)):f}"
        return Kind({"type": "string"}, _numeric_text, f'"{zero}"', partial(_with_scale, typmod=typmod))
    if typmod < 4:
        schema = _variable_schema()
        return Kind(schema, lambda array: by_value(array, _variable), '{"scale":0,"value":"AA=="}')
    precision, scale = (typmod - 4) >> 16, _scale(typmod)
    parameters = {"scale": str(scale), "connect.decimal.precision": str(precision)}
    schema = _named("bytes", _DECIMAL, parameters=parameters)
    if options.numbers:
        return Kind(schema, partial(_numbers, scale=scale), _java_decimal(0, scale))
    return Kind(schema, partial(_scaled, scale=scale), '"AA=="')


def _scale(typmod: int) -> int:
    """Return the scale of ``numeric(p,s)``. Those below 0 are taken for large ones: 3,-2 for 3,2046."""
    return (typmod - 4) & 0x7FF


def _with_scale(texts: pa.Array, *, typmod: int) -> pa.Array:
    """Return numbers with as many decimals as their type has: a default is written with fewer."""
    if typmod < 4 or _scale(typmod) > 1000:
        return texts
    places = Decimal(1).scaleb(-_scale(typmod))
    return by_value(texts, lambda text: text if text in _SPECIAL else f"{_EXACT.quantize(Decimal(text), places):f}")


def _variable_schema() -> Schema:
    fields = [
        {"type": "int32", "optional": False, "field": "scale"},
        {"type": "bytes", "optional": False, "field": "value"},
    ]
    return {
        **_named("struct", "io.debezium.data.VariableScaleDecimal"),
        "fields": fields,
        "doc": "Variable scaled decimal",
    }


def _scaled(array: pa.Array, *, scale: int) -> pa.Array:
    if pa.types.is_decimal(array.type) and array.type.scale == scale:
        return in_quotes(base64_columns.encode(decimals.to_bytes(array)))

    return _by_unscaled(array, scale, _quoted_bytes)


def _by_unscaled(array: pa.Array, scale: int, write: Callable[[int], str]) -> pa.Array:
    """Return what ``write`` makes of each unscaled value; a special value is null."""
    return by_value(
        array.cast(TEXT),
        lambda text: None if text in _SPECIAL else write(int(_EXACT.scaleb(Decimal(text), scale))),
    )


_PLAIN_SCALE = 6  # of more decimals than these, Java's BigDecimal has small values with an exponent


def _numbers(array: pa.Array, *, scale: int) -> pa.Array:
    if pa.types.is_decimal(array.type) and array.type.scale == scale <= _PLAIN_SCALE:
        return decimals.to_text(array)

    return _by_unscaled(array, scale, lambda unscaled: _java_decimal(unscaled, scale))


def _java_decimal(unscaled: int, scale: int) -> str:
    """Return what BigDecimal's ``toString`` gives.

    >>> _java_decimal(150, 2), _java_decimal(1, 8), _java_decimal(0, 7)
    ('1.50', '1E-8', '0E-7')
    """
    return str(_EXACT.scaleb(Decimal(unscaled), -scale))


def _numeric_text(array: pa.Array) -> pa.Array:
    if pa.types.is_decimal(array.type):
        return in_quotes(decimals.to_text(array))
    return by_value(array, lambda text: f'"{_SPECIAL.get(text, text)}"')


def _variable(text: str) -> str | None:
    """Unscaled value and scale of a decimal without zeros at its end; a special value is null."""
    if text in _SPECIAL:
        return None
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return f'{{"scale":{len(fraction)},"value":{_quoted_bytes(_integer(whole + fraction))}}}'


def _integer(digits: str) -> int:
    """Return a number of any length; Python refuses more than 4,300 digits at once."""
    return int(digits) if len(digits) < 4000 else int(Decimal(digits))


def _quoted_bytes(number: int) -> str:
    size = (number + (number < 0)).bit_length() // 8 + 1
    return f'"{base64.b64encode(number.to_bytes(size, "big", signed=True)).decode()}"'


_CENTS = re.compile(r"[.,](\d{1,2})\D*$")


def _money(_: Mapping[str, Any], options: TypeOptions) -> Kind:
    digits = options.money_digits

    def amount(text: str) -> Decimal:
        found, sign = _CENTS.search(text), "-" if "-" in text or "(" in text else ""
        number = Decimal(f"{sign}{re.sub(r'[^0-9]', '', text) or 0}")
        return number.scaleb(-len(found[1]) if found else 0)

    def unscaled(text: str) -> str:
        return _quoted_bytes(int(amount(text).scaleb(digits)))

    def plain(text: str) -> str:
        return f'"{amount(text):f}"'

    def double(array: pa.Array) -> pa.Array:
        return java_floats(_each(array, lambda text: float(amount(text)), pa.float64()))

    if options.decimals == "string":
        return Kind({"type": "string"}, partial(by_value, write=plain), f'"{Decimal(0).scaleb(-digits):f}"')
    if options.decimals == "double":
        return Kind({"type": "double"}, double, "0.0")

    def number(text: str) -> str:
        return _java_decimal(int(amount(text).scaleb(digits)), digits)

    schema = _named("bytes", _DECIMAL, parameters={"scale": str(digits)})
    if options.numbers:
        return Kind(schema, partial(by_value, write=number), _java_decimal(0, digits))
    return Kind(schema, partial(by_value, write=unscaled), '"AA=="')


# --- days, times, instants, intervals ---


def _date(about: Mapping[str, Any], options: TypeOptions) -> Kind:
    def read(texts: pa.Array) -> pa.Array:
        return _times_of(texts, pa.date32())

    # The driver reads an array's days as it does those of a snapshot.
    in_array = "in_array" in about
    if options.times == "isostring":
        schema = _named("string", f"{_TIME}IsoDate")

        def iso(array: pa.Array, *, read: bool) -> pa.Array:
            days = _days(array, read=read).cast(pa.int32()).view(pa.date32())
            texts = _with_z(timestamps.to_iso_days(days))
            for infinite, text in _INFINITE_ISO.items() if read else ():
                texts = pc.if_else(pc.equal(array.view(pa.int32()), infinite), pa.scalar(text, TEXT), texts)
            return in_quotes(texts)

        return Kind(schema, partial(iso, read=in_array), '"1970-01-01Z"', read, write_read=partial(iso, read=True))
    name = "org.apache.kafka.connect.data.Date" if options.times == "connect" else f"{_TIME}Date"

    return Kind(_named("int32", name), partial(_days, read=in_array), "0", read, write_read=partial(_days, read=True))


def _times_of(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return days or instants of PostgreSQL's texts; what does not fit 64 bits is null."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return times_of(texts, kind)


_LAST_DAY, _FIRST_DAY = 2**31 - 1, -(2**31)  # infinity, as the log has it
_YEAR_1, _GAP = -719_162, (-141_437, -141_428)  # days of 0001-01-01; of 1582-10-05 and 1582-10-14
# What becomes of infinity when an int overflows: in Java's calendar, or with the days from 1970 to 2000.
_INFINITE_DAYS = {True: (-622_191_234, -625_821_272), False: (-2_147_472_692, -2_147_472_691)}

# The last and the first instant of Java's calendar as days, the second without its era.
_INFINITE_ISO = {_LAST_DAY: "+292278994-08-16Z", _FIRST_DAY: "+292269055-12-02Z"}


def _days(array: pa.Array, *, read: bool) -> pa.Array:
    """Days since 1970. A snapshot has them from Java's calendar."""
    days = np.array(array.view(pa.int32()).fill_null(0))
    infinite, past = _INFINITE_DAYS[read]
    odd = {infinite: days == _LAST_DAY, past: days == _FIRST_DAY}
    if read:
        days = np.where(days == _FIRST_DAY, days, _java_days(days))
    for value, where in odd.items():
        days[where] = value
    return pa.array(days, mask=np.asarray(array.is_null())).cast(TEXT)


def _java_days(days: Ints) -> Ints:
    """Return the days of the dates that Java's calendar has for days: it knows no BC, and has no 1582-10-05 to -14."""
    found = np.where((days >= _GAP[0]) & (days <= _GAP[1]), days + 10, days)
    bc = days < _YEAR_1
    found[bc] = [_of_the_era(day) for day in days[bc].tolist()]
    return found


def _of_the_era(day: int) -> int:
    """Day of the same date in the year of this number after Christ."""
    year, month, date = civil(day)
    return int(days_of(np.array([1 - year]), np.array([month]), np.array([date]))[0])


def _precision(about: Mapping[str, Any]) -> int:
    return about["typmod"] if about["typmod"] >= 0 else 6


def _counted(name: str, precision: int, mode: str) -> tuple[Schema, int]:
    """Return the schema of a time or timestamp that is a number, and how many microseconds that counts (0: ns)."""
    width = "int32" if name == "Time" else "int64"
    if mode == "connect":
        return _named(width, f"org.apache.kafka.connect.data.{name}"), 1000
    fine = mode == "microseconds" or (mode == "adaptive_time_microseconds" and name == "Time")
    if mode == "nanoseconds":
        return _named("int64", f"{_TIME}Nano{name}"), 0
    if precision <= 3 and not fine:
        return _named(width, f"{_TIME}{name}"), 1000
    return _named("int64", f"{_TIME}Micro{name}"), 1


def _time(about: Mapping[str, Any], options: TypeOptions) -> Kind:
    in_array = "in_array" in about
    if options.times == "isostring":

        def iso(array: pa.Array) -> pa.Array:
            # Midnight at the end of a day is the one at its beginning.
            texts = pc.replace_substring_regex(_trimmed(_cut_times(array) if in_array else array), "^24:", "00:")
            return in_quotes(_with_z(texts))

        return Kind(_named("string", f"{_TIME}IsoTime"), iso, '"00:00:00Z"')
    schema, unit = _counted("Time", _precision(about), options.times)
    return Kind(schema, lambda array: _in_unit(_time_us(_cut_times(array) if in_array else array), unit), "0")


def _cut_times(array: pa.Array) -> pa.Array:
    """Times of milliseconds, whatever the precision, as the driver has those of arrays; the end of a day is none."""
    return pc.replace_substring_regex(pc.utf8_slice_codeunits(array.cast(TEXT), 0, 12), "^24:", "00:")


def _in_unit(micros: pa.Array, unit: int) -> pa.Array:
    numbers = np.asarray(micros.fill_null(0))
    bad = None
    if unit == 0:  # beyond 64 bits of nanoseconds it is null
        bad = np.abs(numbers) > np.iinfo(np.int64).max // 1000
        numbers = np.where(bad, 0, numbers) * 1000
    elif unit > 1:
        numbers = numbers // unit
    mask = np.asarray(micros.is_null())
    return pa.array(numbers, mask=mask if bad is None else mask | bad).cast(TEXT)


def _time_us(array: pa.Array) -> pa.Array:
    """Microseconds since midnight of ``12:34:56.789``."""
    texts = array.cast(TEXT)
    part = [pc.utf8_slice_codeunits(texts, at, at + 2).cast(pa.int64()) for at in (0, 3, 6)]
    fraction = pc.utf8_rpad(pc.utf8_slice_codeunits(texts, 9), 6, "0").cast(pa.int64())
    seconds = pc.add(pc.multiply(pc.add(pc.multiply(part[0], 60), part[1]), 60), part[2])
    return pc.add(pc.multiply(seconds, 1_000_000), fraction)


def _trimmed(array: pa.Array) -> pa.Array:
    """Times or instants without zeros at the end of their fraction."""
    texts = array.cast(TEXT)
    fine = pc.match_substring(texts, ".")
    return pc.if_else(fine, pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), "."), texts)


def _with_z(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(texts, pa.scalar("Z", TEXT), pa.scalar("", TEXT))


def _timestamp(about: Mapping[str, Any], options: TypeOptions) -> Kind:
    def read(texts: pa.Array) -> pa.Array:
        found = _times_of(texts, pa.timestamp("us"))
        return _julian(found) if "in_array" in about else found

    if options.times == "isostring":
        schema = _named("string", f"{_TIME}IsoTimestamp")

        def iso(array: pa.Array) -> pa.Array:
            texts = timestamps.to_iso(_finite_us(array).view(pa.timestamp("us", "UTC")))
            return in_quotes(_with_z(_trimmed(pc.utf8_rtrim(texts, "Z"))))

        return Kind(schema, iso, '"1970-01-01T00:00:00Z"', read)
    schema, unit = _counted("Timestamp", _precision(about), options.times)
    if unit == 0:
        return Kind(schema, _timestamp_ns, "0", read)
    return Kind(schema, lambda array: _in_unit(_finite_us(array), unit), "0", read)


def _timestamp_ns(array: pa.Array) -> pa.Array:
    """Nanoseconds, of which infinity is the last."""
    numbers = array.view(pa.int64())
    infinite = pc.is_in(numbers, pa.array(list(_INFINITE_US), pa.int64()))
    return pc.if_else(infinite, numbers.cast(TEXT), _in_unit(numbers, 0))


_CUTOVER = -141_427  # 1582-10-15, with which Java's calendar becomes the Gregorian one


def _julian(array: pa.Array) -> pa.Array:
    """Return instants of which the dates before 1582-10-15 are taken for Julian ones, as Java's calendar has them."""
    numbers = np.array(array.view(pa.int64()).fill_null(0))
    days, rest = np.divmod(numbers, _DAY_US)
    old = (days < _CUTOVER) & (numbers != np.iinfo(np.int64).min)
    if not old.any():
        return array
    moved = np.array([_julian_days(*civil(day)) for day in days[old].tolist()])
    numbers[old] = moved * _DAY_US + rest[old]
    return pa.array(numbers, mask=np.asarray(array.is_null())).view(array.type)


def _julian_days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Julian calendar.

    >>> _julian_days(1582, 10, 10), _julian_days(1, 1, 1)
    (-141422, -719164)
    """
    before = (14 - month) // 12
    years, months = year + 4800 - before, month + 12 * before - 3
    return day + (153 * months + 2) // 5 + 365 * years + years // 4 - 2_472_671


# Microseconds of infinity, as Java's driver has it.
_INFINITE_US = {np.iinfo(np.int64).max: 9_223_372_036_825_200_000, np.iinfo(np.int64).min: -9_223_372_036_832_400_000}


def _finite_us(array: pa.Array) -> pa.Array:
    numbers = array.view(pa.int64())
    for infinite, value in _INFINITE_US.items():
        where = pc.equal(numbers, infinite)
        if pc.any(where, min_count=0).as_py():
            # Beyond 64 bits, which Java does not see.
            wrapped = (value + 2**63) % 2**64 - 2**63
            numbers = pc.if_else(where, pa.scalar(wrapped, pa.int64()), numbers)
    return numbers


def _timestamptz(about: Mapping[str, Any], _: TypeOptions) -> Kind:
    digits = _precision(about)
    infinities = ("infinity", "-infinity")
    if "in_array" in about:
        fraction = f".{'0' * digits}" if digits else ""
        infinities = ("infinity", f"+292269055-12-02T23:00:00{fraction}Z")

    def write(array: pa.Array) -> pa.Array:
        texts = timestamps.to_iso(_in_java_dates(array) if "in_array" in about else array)
        if digits < 6:
            texts = pc.utf8_replace_slice(texts, -(7 - digits) - (digits == 0), -1, "")
        numbers = array.view(pa.int64())
        for infinite, text in zip(_INFINITE_US, infinities, strict=True):
            texts = pc.if_else(pc.equal(numbers, infinite), pa.scalar(text, TEXT), texts)
        return in_quotes(texts)

    def read(texts: pa.Array) -> pa.Array:
        return _times_of(texts, pa.timestamp("us", "UTC"))

    return Kind(_named("string", f"{_TIME}ZonedTimestamp"), write, '"1970-01-01T00:00:00Z"', read)


def _in_java_dates(array: pa.Array) -> pa.Array:
    """Return instants with the dates that Java's calendar has for theirs."""
    numbers = np.array(array.view(pa.int64()).fill_null(0))
    days, rest = np.divmod(numbers, _DAY_US)
    old = (days < _CUTOVER) & (numbers != np.iinfo(np.int64).min)
    numbers[old] = _java_days(days[old]) * _DAY_US + rest[old]
    return pa.array(numbers, mask=np.asarray(array.is_null())).view(array.type)


_TIMETZ = re.compile(r"(\d\d):(\d\d):(\d\d)(?:\.(\d+))?([+-]\d\d)(?::(\d\d))?(?::(\d\d))?")


def _timetz(about: Mapping[str, Any], _: TypeOptions) -> Kind:
    in_array = "in_array" in about  # the driver reads whole seconds there

    def shifted(text: str) -> str:
        match = _TIMETZ.fullmatch(text)
        if match is None:
            return json.dumps(text)
        hour, minute, second, fraction, zone, zone_minute, zone_second = match.groups()
        sign = -1 if zone.startswith("-") else 1
        offset = abs(int(zone)) * 3600 + int(zone_minute or 0) * 60 + int(zone_second or 0)
        rest = (int(hour) * 3600 + int(minute) * 60 + int(second) - sign * offset) % 86_400
        decimals_ = f".{fraction}".rstrip("0").rstrip(".") if fraction and not in_array else ""
        return f'"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}{decimals_}Z"'

    return Kind(_named("string", f"{_TIME}ZonedTime"), lambda array: by_value(array, shifted), '"00:00:00Z"')


_INTERVAL = re.compile(
    r"(?:(-?\d+) years? ?)?(?:([+-]?\d+) mons? ?)?(?:([+-]?\d+) days? ?)?(?:([+-])?(\d+):(\d\d):(\d\d(?:\.\d+)?))?"
)
_MONTH_US = 2_629_800_000_000  # 30.4375 days


def _interval(_: Mapping[str, Any], options: TypeOptions) -> Kind:
    def parts(text: str) -> tuple[int, int, int, int, int, Decimal]:
        match = _INTERVAL.fullmatch(text)
        if match is None:
            raise ValueError(f"an interval of another style: {text!r}")
        years, months, days, sign, hours, minutes, seconds = match.groups()
        by = -1 if sign == "-" else 1
        return (
            *(int(value or 0) for value in (years, months, days)),
            by * int(hours or 0),
            by * int(minutes or 0),
            by * Decimal(seconds or 0),
        )  # type: ignore[return-value]  # three and three

    def micros(text: str) -> str:
        years, months, days, hours, minutes, seconds = parts(text)
        whole = (years * 12 + months) * _MONTH_US + days * _DAY_US + (hours * 60 + minutes) * 60_000_000
        return str(min(max(whole + int(_double_seconds(seconds) * 1e6), -(2**63)), 2**63 - 1))

    def iso(text: str) -> str:
        years, months, days, hours, minutes, seconds = parts(text)
        nanos = Decimal(int(_double_seconds(seconds) * 1e9))
        shown = f"{nanos.scaleb(-9):f}".rstrip("0").rstrip(".")
        return f'"P{years}Y{months}M{days}DT{hours}H{minutes}M{"0" if shown == "-0" else shown}S"'

    if options.intervals == "string":
        return Kind(_named("string", f"{_TIME}Interval"), lambda a: by_value(a, iso), '"P0Y0M0DT0H0M0S"')
    return Kind(_named("int64", f"{_TIME}MicroDuration"), lambda a: by_value(a, micros), "0")


def _double_seconds(seconds: Decimal) -> float:
    """Return seconds as the driver adds them up, from which Debezium cuts off what is left."""
    whole = int(seconds)
    return whole + int((seconds - whole) * 1_000_000) / 1e6


# --- bits, points, hstore, vectors ---


def _bits(about: Mapping[str, Any], _: TypeOptions) -> Kind:
    varying = about["name"] == "varbit"
    length = about["typmod"] if about["typmod"] > 0 else (2_147_483_647 if varying else 1)
    if length == 1:
        one = {"": None, "0": "false", "1": "true"}
        return Kind({"type": "boolean"}, partial(by_value, write=one.__getitem__), "false")

    def packed(text: str) -> str:
        number = int(text, 2) if text else 0
        return f'"{base64.b64encode(number.to_bytes((number.bit_length() + 7) // 8, "little")).decode()}"'

    schema = _named("bytes", "io.debezium.data.Bits", parameters={"length": str(length)})
    return Kind(schema, lambda array: by_value(array, packed), '""')


def _point(*_: Any) -> Kind:
    fields = [
        {"type": "double", "optional": False, "field": "x"},
        {"type": "double", "optional": False, "field": "y"},
        {"type": "bytes", "optional": True, "field": "wkb"},
        {"type": "int32", "optional": True, "field": "srid"},
    ]
    schema = {**_named("struct", "io.debezium.data.geometry.Point"), "fields": fields, "doc": "Geometry (POINT)"}

    def write(text: str) -> str:
        x, y = (float(part) for part in text.strip("()").split(","))
        wkb = base64.b64encode(b"\x01\x01\x00\x00\x00" + np.array([x, y], "<f8").tobytes()).decode()
        return f'{{"x":{java_double(x)},"y":{java_double(y)},"wkb":"{wkb}","srid":null}}'

    return Kind(schema, lambda array: by_value(array, write), write("(0,0)"))


_HSTORE = re.compile(r'"((?:[^"\\]|\\.)*)"=>(?:NULL|"((?:[^"\\]|\\.)*)")', re.DOTALL)


def _hstore(_: Mapping[str, Any], options: TypeOptions) -> Kind:
    def plain(text: str) -> str:
        return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)

    def write(text: str) -> str:
        pairs = {plain(m[1]): None if m[2] is None else plain(m[2]) for m in _HSTORE.finditer(text)}
        return json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))

    held = write(f'"{options.placeholder_text}"=>"{options.placeholder_text}"')
    if options.hstore == "map":
        values = {"type": "string", "optional": True}
        schema = {"type": "map", "keys": {"type": "string", "optional": False}, "values": values}
        return Kind(schema, lambda array: by_value(array, lambda t: java_text(json.loads(write(t)))), "{}", toast=held)
    schema = _named("string", "io.debezium.data.Json")
    return Kind(schema, lambda a: by_value(a, lambda text: java_string(write(text))), '"{}"', toast=json.dumps(held))


def _vector(name: str, item: str, arrow: pa.DataType) -> Callable[[Mapping[str, Any], TypeOptions], Kind]:
    def write(array: pa.Array) -> pa.Array:
        lists = pa.array([None if t is None else t.strip("[]").split(",") for t in array.to_pylist()], pa.list_(TEXT))
        return enclosed("[", lists, java_floats(lists.flatten().cast(arrow)), "]")

    schema = {**_named("array", f"io.debezium.data.{name}"), "items": {"type": item, "optional": False}}
    return lambda *_: Kind(schema, write, "[]")


def _sparse(*_: Any) -> Kind:
    numbers = {"type": "int16", "optional": False}
    vector = {"type": "map", "keys": numbers, "values": {"type": "double", "optional": False}, "optional": False}
    fields = [{**numbers, "field": "dimensions"}, {**vector, "field": "vector"}]
    schema = {
        **_named("struct", "io.debezium.data.SparseDoubleVector"),
        "fields": fields,
        "doc": "Sparse double vector",
    }

    def write(text: str) -> str:
        pairs, _, dimensions = text.rpartition("/")
        inside = [pair.split(":") for pair in pairs.strip("{}").split(",") if pair]
        shown = ",".join(f"[{index},{java_double(float(value))}]" for index, value in inside)
        return f'{{"dimensions":{dimensions},"vector":[{shown}]}}'

    return Kind(schema, lambda array: by_value(array, write), '{"dimensions":0,"vector":[]}')


# --- arrays ---

_VECTORS = {"int2vector": "int16", "oidvector": "int64"}


def _of_a_vector(name: str, options: TypeOptions) -> Kind | None:
    """The old vectors of the catalog are arrays in which the driver finds nothing."""
    if not options.unknown:
        return None
    schema = {"type": "array", "items": field_schema({"type": _VECTORS[name]}, None, optional=False)}
    return Kind(schema, lambda array: pc.if_else(array.is_valid(), pa.scalar("[]", TEXT), pa.scalar(None, TEXT)), "[]")


_NO_ARRAYS = frozenset({"money", "name", "interval", "varbit", "xml", "point", "refcursor"})


def _array(about: Mapping[str, Any], options: TypeOptions) -> Kind | None:
    element = {**about["element"], "in_array": True}
    name, made = element["name"], bool(element.get("domain")) or element.get("kind", "b") not in "bre"
    if not made and (name in _NO_ARRAYS or (name == "tsvector" and not options.unknown)):
        return None
    inner = _unknown(options) if made else kind_of(element, options)
    if inner is None:
        return None
    if name == "bit":  # taken for a bit string, which an array is not
        return replace(inner, write=lambda array: pa.nulls(len(array), TEXT))
    is_enum = element.get("kind") == "e"
    nested = _class_of_items(name, inner.schema)
    whole = is_enum or made or name == "tsvector" or name not in _TYPES
    items_of = _boxes if name == "box" else array_items

    def write(array: pa.Array) -> pa.Array:
        rows = [None if text is None else list(items_of(text)) for text in array.to_pylist()]
        if whole:  # a NULL among these makes the whole value null
            rows = [None if row is not None and None in row else row for row in rows]
        if name == "numeric":  # and so does what is no number
            rows = [None if row is not None and not _SPECIAL.keys().isdisjoint(_texts_in(row)) else row for row in rows]
        flat = [[_nested(item, nested) for item in row] if row is not None else None for row in rows]
        lists = pa.array(flat, pa.list_(TEXT))
        items = inner.write(inner.read(lists.flatten())).fill_null("null")
        return enclosed("[", lists, items, "]")

    schema = {"type": "array", "items": field_schema(inner.schema, None, optional=not whole)}
    return Kind(schema, write, "[]", toast=_array_toast(name, inner, options))


def _texts_in(row: Sequence[Any]) -> Iterator[str]:
    return (item for item in row if isinstance(item, str))


def _boxes(text: str) -> Iterator[str | None]:
    """Yield boxes of an array, between which there are semicolons."""
    for item in text[1:-1].split(";") if text != "{}" else ():
        yield None if item == "NULL" else item


def _class_of_items(name: str, schema: Schema) -> str:
    """Return Java's class of an array's items whose converter takes any object's text; empty where it does not."""
    if name in _CHARACTERS or schema.get("name") in ("io.debezium.data.Json", "io.debezium.data.Enum"):
        return "java.lang.String"
    if name == "uuid":
        return "java.util.UUID"
    plain = schema["type"] == "string" and "name" not in schema and name not in ("numeric", "bytea")
    return "java.lang.Object" if plain else ""


def _nested(item: Any, class_: str) -> str | None:
    """Arrays in arrays are what Java makes of them: the name of a class as text, else null."""
    if not isinstance(item, list):
        return item  # type: ignore[no-any-return]  # text, or None
    depth = 1
    while item and isinstance(item[0], list):
        item, depth = item[0], depth + 1
    return f"{'[' * depth}L{class_};@HASH" if class_ else None


def _array_toast(name: str, inner: Kind, options: TypeOptions) -> str:
    if name == "bytea" and options.binary != "bytes":
        return "null"
    if name in ("text", "varchar", "bpchar", "json", "jsonb", "bytea"):
        return f"[{inner.toast}]"
    if name in ("int4", "int8", "date"):  # Java's bytes have a sign
        return json.dumps(np.frombuffer(options.placeholder_bytes, np.int8).tolist(), separators=(",", ":"))
    if name == "uuid":  # Java's UUID.nameUUIDFromBytes
        digest = bytearray(hashlib.md5(options.placeholder_bytes, usedforsecurity=False).digest())
        digest[6], digest[8] = digest[6] & 0x0F | 0x30, digest[8] & 0x3F | 0x80
        return f'["{uuid.UUID(bytes=bytes(digest))}"]'
    return "null"


def array_items(text: str) -> Iterator[Any]:
    """Yield the items of an array in PostgreSQL's text form: texts, None, or lists of such.

    https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO

    >>> list(array_items('{a,"b,\\\\"c",NULL,"NULL",{x}}'))
    ['a', 'b,"c', None, 'NULL', ['x']]
    >>> list(array_items("[2:3]={1,2}"))
    ['1', '2']
    """
    start = text.index("{")
    items, _ = _items(text, start + 1)
    yield from items


_PLAIN = re.compile(r'[^,{}"]+')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def _items(text: str, at: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    while text[at] != "}":
        if text[at] == "{":
            inner, at = _items(text, at + 1)
            found.append(inner)
        elif text[at] == '"':
            match = _QUOTED.match(text, at)
            assert match is not None, text
            found.append(re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL))
            at = match.end()
        else:
            match = _PLAIN.match(text, at)
            assert match is not None, text
            found.append(None if match[0].upper() == "NULL" else match[0])
            at = match.end()
        if text[at] == ",":
            at += 1
    return found, at + 1


# -- JSON as Java writes it -------------------------------------------------------------------------------------------

_ESCAPED = re.compile(r'["\\\x00-\x1f\U00010000-\U0010ffff]')
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
_ABOVE = re.compile(r"[\U00010000-\U0010ffff]")
_BEYOND = 0xF0  # the first byte in UTF-8 of what is beyond the basic plane


def java_string(text: str) -> str:
    """Return a JSON string as Jackson writes it: what is beyond the basic plane as two escapes.

    >>> java_string("é😀")
    '"é\\\\uD83D\\\\uDE00"'
    """
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    known = _ESCAPES.get(character)
    if known is not None:
        return known
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02X}{units[at + 1]:02X}" for at in range(0, len(units), 2))


def java_text(value: Any) -> str:
    """Return a map of texts as JSON."""
    return "{" + ",".join(f"{java_string(k)}:{'null' if v is None else java_string(v)}" for k, v in value.items()) + "}"


def quoted(array: pa.Array) -> pa.Array:
    """Return texts as JSON strings; only those are looked at one by one that have characters beyond the basic plane.

    >>> quoted(pa.array(["a", 'é"\\n', "\\x1f😀", None])).to_pylist()
    ['"a"', '"é\\\\"\\\\n"', '"\\\\u001F\\\\uD83D\\\\uDE00"', None]
    """
    texts = escaped(array.cast(TEXT), "04X")
    data, _, _ = spans(texts)
    if not (data >= _BEYOND).any():
        return in_quotes(texts)
    odd = pc.match_substring_regex(texts, r"[\x{10000}-\x{10ffff}]")
    replaced = [_ABOVE.sub(_escape, text) for text in texts.filter(odd).to_pylist()]
    return in_quotes(pc.replace_with_mask(texts, odd.fill_null(False), pa.array(replaced, TEXT)))


def by_value(array: pa.Array, write: Callable[[str], str | None]) -> pa.Array:
    """Return a text of every text, made once for each that is different; null stays null."""
    return _each(array, write, TEXT)


def _each(array: pa.Array, write: Callable[[str], Any], kind: pa.DataType) -> pa.Array:
    encoded = array.cast(TEXT).dictionary_encode()
    made = pa.array([write(text) for text in encoded.dictionary.to_pylist()], kind)
    return made.take(encoded.indices)


def java_floats(array: pa.Array) -> pa.Array:
    """Return floats as Java's ``Double.toString`` and ``Float.toString`` have them; in quotes what is no number.

    >>> java_floats(pa.array([1.0, -0.0, 0.001, 1e7, None, float("nan")])).to_pylist()
    ['1.0', '-0.0', '0.001', '1.0E7', None, '"NaN"']
    """
    numbers = np.ascontiguousarray(array.fill_null(0.5) if array.null_count else array)
    size = np.abs(numbers)
    with np.errstate(invalid="ignore"):
        usual = ((size >= 1e-3) & (size < 1e7)) | (size == 0)
    if usual.all():
        texts = _decimals(numbers)
    else:
        odd = _with_exponents(numbers[~usual])
        texts = pc.replace_with_mask(_decimals(np.where(usual, numbers, 0)), pa.array(~usual), odd)
    return pc.if_else(array.is_valid(), texts, pa.scalar(None, TEXT)) if array.null_count else texts


_SCIENTIFIC = r"^(?P<sign>-?)(?:0\.(?P<zeros>0*)|(?P<whole>[0-9]+)\.?)(?P<rest>[0-9]*)(?:e[+]?(?P<exponent>-?[0-9]+))?$"


def _with_exponents(numbers: npt.NDArray[Any]) -> pa.Array:
    """Return floats that Java writes with an exponent, or in quotes."""
    # The smallest ones have in Java a digit more than they need.
    few = ~np.isfinite(numbers) | (np.abs(numbers) < np.finfo(numbers.dtype).smallest_normal)
    parts = pc.extract_regex(_decimals(np.where(few, 1, numbers)), _SCIENTIFIC)
    sign, zeros, whole, rest, exponent = parts.flatten()
    digits = pc.binary_join_element_wise(whole, rest, pa.scalar("", TEXT))
    power = pc.subtract(pc.binary_length(whole), pc.binary_length(zeros)).cast(pa.int64())
    shown = pc.if_else(pc.equal(exponent, ""), pa.scalar("0", TEXT), exponent).cast(pa.int64())
    power = pc.add(pc.subtract(power, 1), shown)
    behind = pc.utf8_rtrim(pc.utf8_slice_codeunits(digits, 1), "0")
    behind = pc.if_else(pc.equal(behind, ""), pa.scalar("0", TEXT), behind)
    texts = joined([sign, pc.utf8_slice_codeunits(digits, 0, 1), ".", behind, "E", power.cast(TEXT)], numbers.size)
    odd = pa.array([java_double(number) for number in numbers[few]], TEXT)
    return pc.replace_with_mask(texts, pa.array(few), odd)


def _decimals(numbers: npt.NDArray[Any]) -> pa.Array:
    """Return finite floats as the shortest decimals that read back as the same: a JSON array, cut at its commas."""
    shown = np.frombuffer(orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY), np.uint8)[1:-1]
    commas = np.flatnonzero(shown == ord(","))
    offsets = np.append(0, np.append(commas, shown.size) - np.arange(numbers.size))
    digits = shown.tobytes().translate(None, b",")
    return pa.Array.from_buffers(TEXT, numbers.size, [None, pa.py_buffer(offsets), pa.py_buffer(digits)])


def java_double(number: Any) -> str:
    """Return one number as Java prints it.

    >>> [java_double(number) for number in (1e10, 0.0001, 1.5, 5e-324, float("nan"), np.float32(3.4028235e38))]
    ['1.0E10', '1.0E-4', '1.5', '4.9E-324', '"NaN"', '3.4028235E38']
    """
    if not np.isfinite(number):
        return '"NaN"' if np.isnan(number) else '"Infinity"' if number > 0 else '"-Infinity"'
    size = abs(number)
    if size == 0 or 1e-3 <= size < 1e7:
        return str(np.format_float_positional(number, unique=True, trim="0"))
    # Java's smallest numbers have a digit more than they need.
    small = {5e-324: "4.9E-324"} if not isinstance(number, np.float32) else {np.float32(1e-45): "1.4E-45"}
    if size in small:
        return ("-" if number < 0 else "") + small[size]
    mantissa, _, exponent = np.format_float_scientific(number, unique=True, trim="0").partition("e")
    return f"{mantissa}E{int(exponent)}"


def _name(about: Mapping[str, Any], options: TypeOptions) -> Kind:
    """Names are null while it streams, unless types are taken that Debezium does not know."""
    kind = _PLAIN_TEXT(about, options)
    if options.unknown:
        return kind
    return replace(kind, write=lambda array: pa.nulls(len(array), TEXT), write_read=kind.write)


_PLAIN_TEXT = _text({"type": "string"})
_OTHER_TEXT = _text({"type": "string"}, placeholder=False)
_JSON = _text(_named("string", "io.debezium.data.Json"))
_TYPES: dict[str, Callable[[Mapping[str, Any], TypeOptions], Kind | None]] = {
    "bool": _bool,
    "int2": _number("int16", pa.int16()),
    "int4": _number("int32", pa.int32()),
    "int8": _number("int64", pa.int64()),
    "oid": _number("int64", pa.int64()),
    "float4": _float("float", pa.float32()),
    "float8": _float("double", pa.float64()),
    "numeric": _numeric,
    "money": _money,
    **dict.fromkeys(("text", "varchar", "bpchar", "citext", "char"), _PLAIN_TEXT),
    "name": _name,
    **dict.fromkeys(("inet", "cidr", "macaddr", "macaddr8", "isbn"), _OTHER_TEXT),
    **dict.fromkeys(("int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"), _OTHER_TEXT),
    "json": _JSON,
    "jsonb": _JSON,
    "xml": _text(_named("string", "io.debezium.data.Xml")),
    "uuid": _text(_named("string", "io.debezium.data.Uuid"), placeholder=False),
    "ltree": _text(_named("string", "io.debezium.data.Ltree"), placeholder=False),
    "tsvector": _text(_named("string", "io.debezium.data.Tsvector"), placeholder=False),
    "bytea": _binary,
    "date": _date,
    "time": _time,
    "timetz": _timetz,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "interval": _interval,
    "bit": _bits,
    "varbit": _bits,
    "point": _point,
    "hstore": _hstore,
    "vector": _vector("DoubleVector", "double", pa.float64()),
    "halfvec": _vector("FloatVector", "float", pa.float32()),
    "sparsevec": _sparse,
}
