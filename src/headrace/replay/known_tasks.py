"""The names under which a log knows tasks without a model, whose names come of their place in the pipeline's file.

A copy is named for its first topic, what is derived from a topic for its number: one that is added or taken away before
another would give that one a new name, and it would begin anew. So a task is found again by what it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from headrace.log.base import Log
from headrace.plan.attachments import attachments, identities
from headrace.plan.plan import Plan
from headrace.plan.task import OperatorTask, StreamTask, Task
from headrace.registry.models import read_declarations, read_progress
from headrace.replay.steps import read_steps

Known = Mapping[str, tuple[frozenset[str], list[str]]]
"""Task -> the topics that it has written, and what its operators were."""


def with_known_names(plan: Plan, log: Log) -> Plan:
    """Return a plan whose tasks without a model are named as the log names them."""
    names = list(log.records("position"))
    tasks = list(plan.tasks)
    for kind, prefix_of in _KINDS:
        prefixes = dict.fromkeys(prefix_of(task) for task in tasks if isinstance(task, kind))
        for prefix in prefixes:
            mine = [number for number, task in enumerate(tasks) if isinstance(task, kind) and prefix_of(task) == prefix]
            known = {name: _known(plan, log, name) for name in names if _alike(name, prefix)}
            if known:
                for number, name in zip(mine, _names([tasks[number] for number in mine], known), strict=True):
                    tasks[number] = replace(tasks[number], name=name)
    return plan if tasks == list(plan.tasks) else replace(plan, tasks=tuple(tasks))


def _derived(task: Task) -> str:
    return task.name.split("#")[0]


def _copied(task: Task) -> str:
    assert isinstance(task, StreamTask)
    return f"stream:{task.stream.topic}→"


_KINDS: tuple[tuple[type[Task], Callable[[Task], str]], ...] = ((OperatorTask, _derived), (StreamTask, _copied))


def _alike(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix.endswith("→") else name.split("#")[0] == prefix


def _known(plan: Plan, log: Log, name: str) -> tuple[frozenset[str], list[str]]:
    """Return what a task has made, as the log knows it."""
    found = read_declarations(log, name)
    if found:
        attached = found[-1].attached
        outputs = attached.get("outputs") or [output for node in attached["nodes"] for output in node["outputs"]]
        return frozenset(output["topic"] for output in outputs), identities(attached)
    progress = read_progress(log, name)
    declared = progress.declared if progress is not None else {}
    topics = {topic for step in read_steps(log, plan.steps_topic, name, 0) for topic in step.outputs}
    nodes = [{**node, "outputs": []} for node in declared.get("derived", ())]
    return frozenset(topic for topic in topics if not topic.endswith(".dlq")), identities({"nodes": nodes})


def _names(tasks: Sequence[Task], known: Known) -> list[str]:
    """Return a name for each task: of one that made the same, or wrote one of its topics; else a new one."""
    found: dict[int, str] = {}
    free = dict(known)
    about = [(frozenset(output.topic for output in task.outputs), identities(attachments(task))) for task in tasks]

    def take(matches: Callable[[tuple[frozenset[str], list[str]], tuple[frozenset[str], list[str]]], bool]) -> None:
        for number, mine in enumerate(about):
            name = next((name for name, was in free.items() if number not in found and matches(was, mine)), None)
            if name is not None:
                found[number] = name
                del free[name]

    take(lambda was, mine: was == mine)
    take(lambda was, mine: bool(was[0] & mine[0]))
    take(lambda was, mine: bool(was[1]) and was[1] == mine[1])
    for number, task in enumerate(tasks):
        if number not in found:
            name, alike = task.name, 1
            while name in known or name in found.values():
                alike += 1
                name = f"{task.name.split('#')[0]}#{alike}"
            found[number] = name
    return [found[number] for number in range(len(tasks))]
