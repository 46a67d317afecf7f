"""A task as it was declared at each of its steps: what a recovery and a replay repeat a step with.

Logs of earlier versions hold no such records: they know of the newest declaration only, and not everything of it.
"""

from __future__ import annotations

from headrace.errors import DeclarationUnknown
from headrace.plan.attachments import AsDeclared, attached_before, attachments, task_as
from headrace.plan.blueprint import task_before
from headrace.plan.fingerprint import core, declaration_differences
from headrace.plan.task import ModelTask, OperatorTask, Task
from headrace.registry.models import Declaration, Progress, read_declarations, read_model, read_progress
from headrace.registry.versions import Reads


class TaskHistory:
    """The declarations of one task, on its log.

    Args:
        log: where it runs.
        task: as it is declared now.
    """

    def __init__(self, log: Reads, task: Task) -> None:
        self._log = log
        self.task = task
        self._fingerprint = task.fingerprint() if isinstance(task, ModelTask) else {}
        self._attached = attachments(task)
        self.recorded: list[Declaration] = []
        self._made: dict[int, AsDeclared] = {}
        self.read()

    def read(self) -> None:
        """Come to where the log is."""
        self._made = {}
        progress = read_progress(self._log, self.task.name) or Progress()
        origin = int(progress.origin.get("step", 0))
        found = read_declarations(self._log, self.task.name)
        # A life that a reset ended is not repeated.
        self.recorded = [declaration for declaration in found if declaration.step >= origin]
        self.declarations = self.recorded or [self._first(progress, origin)]

    def _first(self, progress: Progress, origin: int) -> Declaration:
        """Return what hung on the task, as far as a log without such records tells."""
        fingerprint, blueprint, attached = self._fingerprint, None, self._attached
        if progress.step > origin:
            if isinstance(self.task, OperatorTask) and progress.declared:
                attached = attached_before(progress.declared, attached)
            known = read_model(self._log, self.task.name) if isinstance(self.task, ModelTask) else None
            if known is not None and known["fingerprint"]:
                attached = attached_before(known["fingerprint"], attached)
                fingerprint, blueprint = core(known["fingerprint"]), known.get("blueprint")
        return Declaration(origin, attached, fingerprint, blueprint)

    @property
    def newest(self) -> Declaration:
        """The declaration that the log knows last."""
        return self.declarations[-1]

    @property
    def changed(self) -> bool:
        """True where the task is declared otherwise now."""
        newest = self.newest
        return newest.attached != self._attached or newest.fingerprint != self._fingerprint

    def now(self, step: int) -> Declaration:
        """Return the declaration of now, from a step on."""
        return Declaration(step, self._attached, self._fingerprint)

    def at(self, step: int) -> AsDeclared:
        """Return the task by whose declaration a step was taken.

        Raises:
            DeclarationUnknown: it cannot be made again.
        """
        found = [declaration for declaration in self.declarations if declaration.step <= step]
        return self._as_declared(found[-1] if found else self.declarations[0])

    def _as_declared(self, declaration: Declaration) -> AsDeclared:
        if declaration.step not in self._made:
            self._made[declaration.step] = self._make(declaration)
        return self._made[declaration.step]

    def _make(self, declaration: Declaration) -> AsDeclared:
        task: Task | None = self.task
        if isinstance(self.task, ModelTask) and declaration.fingerprint != self._fingerprint:
            task = task_before(self.task, declaration.fingerprint, declaration.blueprint)
        if task is None:
            changed = "; ".join(declaration_differences(declaration.fingerprint, self._fingerprint))
            raise DeclarationUnknown(
                f"«{self.task.name}» was declared differently from step {declaration.step} on ({changed}), in a way "
                "that its log alone does not tell",
                advice="Take the file that declared it so.",
            )
        return task_as(task, declaration.attached)

    def topics(self) -> tuple[str, ...]:
        """Return all topics that it has ever read."""
        read = [topic for declaration in self.declarations for topic in declaration.attached["topics"]]
        return tuple(dict.fromkeys([*self.task.topics, *read]))


def refuse_unknown(declared: AsDeclared, step: int) -> None:
    """Refuse to repeat a step of a model that was trained anew in a way that is not known any more.

    Raises:
        DeclarationUnknown: it is not.
    """
    if declared.training_unknown:
        raise DeclarationUnknown(
            f"«{declared.task.name}», step {step}: {declared.training_unknown}",
            advice="Take the file that declared it so.",
        )
