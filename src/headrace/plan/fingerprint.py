"""The fingerprint of a model: what the numbers that it has learned depend on; and how two of them differ, for people.

What hangs on a model is none of it (`headrace.plan.attachments`). Earlier versions stored some of that in it, too:
`core` leaves it out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_HANGING = ("derived", "retrain", "served")
# How a part is called where a user writes it.
_WORDS = {"cut": "every", "inputs": "learns", "learns_derived": "learns grades"}


def core(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored fingerprint without what hung on the model when an earlier version stored it.

    >>> core({"cut": "32 rows", "derived": [{"alarm": {"above": 2.0}}], "retrain": {"on": 0}})
    {'cut': '32 rows'}
    """
    found = {key: value for key, value in fingerprint.items() if key not in _HANGING}
    if "learns_derived" in found:
        nodes = fingerprint.get("derived", ())
        found["learns_derived"] = [
            [chain_of(nodes, node) if isinstance(node, int) else node, after] for node, after in found["learns_derived"]
        ]
    return found


def chain_of(nodes: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, Any]]:
    """Return what an operator is, and before it what its rows come from, by the descriptions of all."""
    node = nodes[number]
    before = [] if node["source"] is None else chain_of(nodes, node["source"])
    return [*before, {key: value for key, value in node.items() if key not in ("source", "outputs")}]


def declaration_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what differs between two fingerprints and nothing else, old beside new, a line each.

    >>> old = {"learner": "headrace.learn.kmeans.KMeans", "parameters": {"k": 3, "decay": 1.0}, "features": ["a"]}
    >>> declaration_differences(old, {**old, "parameters": {"k": 4, "decay": 1.0}, "features": ["a", "b"]})
    ['KMeans k: 3 -> 4', 'features: + b']
    """
    old, new = core(before), core(after)
    lines: list[str] = []
    if old.get("learner") != new.get("learner"):
        lines.append(f"learner: {_last(old.get('learner'))} -> {_last(new.get('learner'))}")
    elif old.get("parameters") != new.get("parameters"):
        lines += _of_parameters(_last(new.get("learner")), old.get("parameters", {}), new.get("parameters", {}))
    for key in dict.fromkeys([*old, *new]):
        if key == "learns_derived" and (told := list(_of_chains(old.get(key), new.get(key)))):
            lines += told
        elif key not in ("learner", "parameters") and old.get(key) != new.get(key):
            lines += _of_part(_WORDS.get(key, key), old.get(key), new.get(key))
    return lines


def _last(name: Any) -> str:
    return str(name).rpartition(".")[2]


def _of_parameters(name: str, old: Any, new: Any) -> Iterator[str]:
    """Yield which parameters differ, under the name of the estimator that has them."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if old.get("class") != new.get("class"):
            yield f"{name}: {_last(old.get('class'))} -> {_last(new.get('class'))}"
            return
        name = _last(new["class"]) if "class" in new else name
        for key in dict.fromkeys([*old, *new]):
            was, now = old.get(key), new.get(key)
            if was == now:
                continue
            if isinstance(was, Mapping) and isinstance(now, Mapping):
                yield from _of_parameters(name if "class" in now else f"{name} {key}", was, now)
            elif _steps(was) and _steps(was) == _steps(now):
                yield from _of_parameters(name, was, now)
            else:
                yield f"{name} {key}: {_text(was)} -> {_text(now)}"
        return
    for (step, was), (_, now) in zip(old, new, strict=True):
        if was != now:
            yield from _of_parameters(step, was, now)


def _steps(value: Any) -> list[Any] | None:
    """Return the names of a pipeline's steps; None of what is none."""
    if not isinstance(value, list):
        return None
    named = all(isinstance(step, list) and len(step) == 2 and isinstance(step[0], str) for step in value)
    return [step[0] for step in value] if named and value else None


def _of_part(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, list) and isinstance(new, list):
        texts = [[_text(entry) for entry in side] for side in (old, new)]
        added = [text for text in texts[1] if text not in texts[0]]
        gone = [text for text in texts[0] if text not in texts[1]]
        yield from (f"{name}: + {text}" for text in added)
        yield from (f"{name}: - {text}" for text in gone)
        if not added and not gone:
            yield f"{name}: {', '.join(texts[0])} -> {', '.join(texts[1])}"
    else:
        yield f"{name}: {_text(old)} -> {_text(new)}"


def _of_chains(old: Any, new: Any) -> Iterator[str]:
    """Yield what differs in the operators that learned rows come from, where these are of the same kinds.

    >>> old, new = ([[[{"predicted": 0}, {"grade": topic}], []]] for topic in ("label", "labels"))
    >>> list(_of_chains(old, new))
    ['learns grades: grade: label -> labels']
    """
    if [[list(node) for node in chain] for chain, _ in old or ()] != [
        [list(n) for n in chain] for chain, _ in new or ()
    ]:
        return
    for (was, _), (now, _) in zip(old or (), new or (), strict=True):
        for before, after in zip(was, now, strict=True):
            for key in before:
                if before[key] != after[key]:
                    yield f"{_WORDS['learns_derived']}: {key}: {_text(before[key])} -> {_text(after[key])}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return json.dumps(value, default=str, ensure_ascii=False)
    return "nothing" if value is None else str(value)
