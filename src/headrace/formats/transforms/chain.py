"""A connector's chain of transforms: which there are, and for which records each is.

https://kafka.apache.org/documentation/#connect_transforms and https://kafka.apache.org/documentation/#connect_predicates
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.errors import DeclarationError, FormatError
from headrace.formats.transforms import conditions, envelopes, fields, outbox, routes, values
from headrace.formats.transforms.records import Records, RowsRefused
from headrace.formats.transforms.sides import Options, Transform

_KAFKA = "org.apache.kafka.connect.transforms."
_DEBEZIUM = "io.debezium.transforms."
_FLATTENING = f"{_DEBEZIUM}ExtractNewRecordState"

Predicate = Callable[[Records], Mask]


def keep_none(_: Options) -> Transform:
    """Leave out all records: those that the predicate chooses."""
    return lambda records: []


TRANSFORMS: dict[str, Callable[[Options], Transform]] = {
    f"{_KAFKA}Cast": values.cast,
    f"{_KAFKA}DropHeaders": fields.drop_headers,
    f"{_KAFKA}ExtractField": fields.extract_field,
    f"{_KAFKA}Filter": keep_none,
    f"{_KAFKA}Flatten": fields.flatten,
    f"{_KAFKA}HeaderFrom": fields.header_from,
    f"{_KAFKA}HoistField": fields.hoist_field,
    f"{_KAFKA}InsertField": fields.insert_field,
    f"{_KAFKA}InsertHeader": fields.insert_header,
    f"{_KAFKA}MaskField": fields.mask_field,
    f"{_KAFKA}RegexRouter": routes.regex_router,
    f"{_KAFKA}ReplaceField": fields.replace_field,
    f"{_KAFKA}SetSchemaMetadata": fields.set_schema_metadata,
    f"{_KAFKA}TimestampConverter": values.timestamp_converter,
    f"{_KAFKA}TimestampRouter": routes.timestamp_router,
    f"{_KAFKA}ValueToKey": fields.value_to_key,
    _FLATTENING: envelopes.extract_new_record_state,
    f"{_DEBEZIUM}ByLogicalTableRouter": routes.by_logical_table_router,
    f"{_DEBEZIUM}ContentBasedRouter": conditions.content_based_router,
    f"{_DEBEZIUM}ExtractChangedRecordState": envelopes.extract_changed_record_state,
    f"{_DEBEZIUM}Filter": conditions.filter_by_condition,
    f"{_DEBEZIUM}HeaderToValue": fields.header_to_value,
    f"{_DEBEZIUM}SchemaChangeEventFilter": envelopes.schema_change_event_filter,
    f"{_DEBEZIUM}TimezoneConverter": values.timezone_converter,
    f"{_DEBEZIUM}VectorToJsonConverter": values.vector_to_json,
    f"{_DEBEZIUM}outbox.EventRouter": outbox.event_router,
    f"{_DEBEZIUM}partitions.PartitionRouting": routes.partition_routing,
    "io.debezium.connector.postgresql.transforms.DecodeLogicalDecodingMessageContent": (
        envelopes.decode_logical_decoding_message_content
    ),
}
_ADDS_HEADERS = (_FLATTENING, f"{_DEBEZIUM}ExtractChangedRecordState")
# They make headers of their own for each record.
_COPIES_HEADERS = (f"{_KAFKA}DropHeaders", f"{_KAFKA}HeaderFrom", f"{_KAFKA}InsertHeader")


def topic_name_matches(options: Options) -> Predicate:
    """Choose records of topics whose whole name matches."""
    pattern = re.compile(options.own.get("pattern", ""))

    def matches(records: Records) -> Mask:
        found = [topic for topic in pc.unique(records.topics).to_pylist() if pattern.fullmatch(topic)]
        return np.asarray(pc.is_in(records.topics, pa.array(found, records.topics.type)))

    return matches


def has_header_key(options: Options) -> Predicate:
    """Choose records that have a header."""
    name = options.text("name")
    return lambda records: np.full(len(records), any(known == name for known, _ in records.headers))


def record_is_tombstone(_: Options) -> Predicate:
    """Choose records without a value."""
    return lambda records: records.is_tombstone


PREDICATES: dict[str, Callable[[Options], Predicate]] = {
    f"{_KAFKA}predicates.HasHeaderKey": has_header_key,
    f"{_KAFKA}predicates.RecordIsTombstone": record_is_tombstone,
    f"{_KAFKA}predicates.TopicNameMatches": topic_name_matches,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that a transform could not take.

    Attributes:
        order: where it stood among those of its batch.
        transform: the name in ``transforms``.
    """

    order: int
    topic: str
    transform: str
    reason: str

    def __str__(self) -> str:
        return f"a record of {self.topic} was left out: transforms.{self.transform}: {self.reason}"


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    type: str
    transform: Transform
    predicate: Predicate | None
    negated: bool

    def apply(self, records: Records, refusals: list[Refusal]) -> list[Records]:
        """Return what becomes of records; those at fault are refused, and the others go on."""
        if self.predicate is None:
            return self._applied(records, refusals)
        chosen, others = records.split(self.predicate(records) ^ self.negated)
        return [others, *(self._applied(chosen, refusals) if len(chosen) else [])]

    def _applied(self, records: Records, refusals: list[Refusal]) -> list[Records]:
        waiting, found = [records], []
        while waiting:
            some = waiting.pop()
            if not len(some):
                continue
            try:
                found += self.transform(some)
            except FormatError as error:
                at_fault = np.zeros(len(some), bool)
                if isinstance(error, RowsRefused):
                    at_fault = error.among(some)
                if len(some) == 1:
                    at_fault[:] = True
                if at_fault.any():
                    refusals += self._refused(some.take(at_fault), error.message)
                    waiting.append(some.take(~at_fault))
                else:
                    middle, every = len(some) // 2, np.arange(len(some))
                    waiting += [some.take(every[middle:]), some.take(every[:middle])]
        return found

    def _refused(self, records: Records, reason: str) -> list[Refusal]:
        topics = records.topics.to_pylist()
        return [
            Refusal(int(order), topic, self.name, reason) for order, topic in zip(records.order, topics, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Chain:
    """Transforms in their order."""

    steps: Sequence[_Step]

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> Chain | None:
        """Return the chain that a connector's properties declare; None where it has none."""
        steps = [_step(properties, name) for name in _names(properties.get("transforms", ""))]
        return cls(tuple(steps)) if steps else None

    def apply(self, records: Sequence[Records], *, sharing: bool = False) -> tuple[list[Records], list[Refusal]]:
        """Return what becomes of records, and those that were refused.

        Args:
            sharing: a tombstone has one object of headers with the delete before it, as a connector gives them.
        """
        refusals: list[Refusal] = []
        held = list(records)
        tombstones = np.concatenate([some.order[some.is_tombstone] for some in held] or [np.zeros(0, np.int64)])
        shared = sharing and bool(tombstones.size)
        for step in self.steps:
            before = held
            held = [made for some in held if len(some) for made in step.apply(some, refusals) if len(made)]
            shared = shared and step.type not in _COPIES_HEADERS
            if shared and step.type in _ADDS_HEADERS:
                held = _with_headers_of_deletes(tombstones, before, held)
        return held, sorted(refusals, key=lambda refusal: refusal.order)


def _with_headers_of_deletes(tombstones: Ints, before: Sequence[Records], after: Sequence[Records]) -> list[Records]:
    """Give tombstones the headers that a transform added to their deletes: in Java the two have one object of them."""
    had = {order: len(some.headers) for some in before for order in some.order.tolist()}
    found = []
    for records in after:
        rest, others = records.split(np.isin(records.order, tombstones))
        found.append(others)
        for deletes in after:
            theirs, rest = rest.split(np.isin(rest.order - 1, deletes.order))
            if len(theirs):
                place = {order: row for row, order in enumerate(deletes.order.tolist())}
                of = deletes.take(np.array([place[order - 1] for order in theirs.order.tolist()]))
                own = theirs.headers[had[int(theirs.order[0])] :]
                found.append(replace(theirs, headers=(*of.headers, *own)))
        found.append(rest)
    return [some for some in found if len(some)]


def _step(properties: Mapping[str, str], name: str) -> _Step:
    """Return the transform of a name.

    Raises:
        ValueError: it cannot be made of its properties.
        KeyError: one is not there.
    """
    own = _own(properties, f"transforms.{name}.")
    named = own.get("predicate", "").strip()
    predicate = None
    if named:
        about = _own(properties, f"predicates.{named}.")
        predicate = PREDICATES[about["type"]](Options(about))
    class_, _, side = own["type"].partition("$")
    options = Options(own, "key" if side == "Key" else "value")
    negated = own.get("negate", "false").strip().lower() == "true"
    return _Step(name, class_, TRANSFORMS[class_](options), predicate, negated)


def problems(properties: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong with the transforms of a chain, by their names; nothing where it can be run.

    >>> cast = {"type": "org.apache.kafka.connect.transforms.Cast$Value", "spec": "a:date"}
    >>> problems({"transforms": "c", **{f"transforms.c.{name}": value for name, value in cast.items()}})
    {'c': 'Invalid type found in casting spec: date'}
    """
    found = {}
    for name in _names(properties.get("transforms", "")):
        try:
            _step(properties, name)
        except KeyError as error:
            found[name] = f"{error.args[0]} is not there, or is nothing that is known here"
        except (ValueError, re.error) as error:
            found[name] = str(error)
    return found


def check_chain(properties: Mapping[str, str]) -> None:
    """Refuse a chain that cannot be run.

    Raises:
        DeclarationError: with what is wrong with each transform.
    """
    wrong = [f"transforms.{name}: {said}" for name, said in problems(properties).items()]
    if wrong:
        told = "".join(f"\n    {said}" for said in wrong)
        raise DeclarationError(f"these transforms cannot be run:{told}", advice="Mend them, or leave them out.")


def flattening_alone(properties: Mapping[str, str]) -> str:
    """Return the name of the only transform, where it does nothing but flatten every event; otherwise nothing."""
    names = _names(properties.get("transforms", ""))
    if len(names) != 1 or properties.get(f"transforms.{names[0]}.type") != _FLATTENING:
        return ""
    own = _own(properties, f"transforms.{names[0]}.")
    more = ("predicate", "route.by.field", "drop.fields.header.name")
    places = f"{own.get('add.fields', '')},{own.get('add.headers', '')}"
    if any(own.get(name, "").strip() for name in more) or re.search(r"transaction\.|\b(id|total_order)\b", places):
        return ""
    return names[0]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _own(properties: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in properties.items() if key.startswith(prefix)}


def printed(records: Sequence[Records], *, schemas: bool, defaults: bool) -> list[tuple[int, str]]:
    """Return (order, line) of records, in their order."""
    found = [
        pair
        for some in records
        for pair in zip(some.order.tolist(), some.lines(schemas=schemas, defaults=defaults).to_pylist(), strict=True)
    ]
    return sorted(found, key=lambda pair: pair[0])
