"""A training beside the pipeline: the old model answers while a thread trains the new one."""

from __future__ import annotations

import copy
import threading

from headrace.learn.base import pinned
from headrace.learn.state import dump_pieces, load_state
from headrace.plan.task import ModelTask
from headrace.registry.records import Pieces
from headrace.registry.versions import artifact_name
from headrace.step.model_version import ModelVersion, VersionChange
from headrace.step.retraining import Trained, train_pending
from headrace.step.state import State


class Trainer:
    """One training, which begins at once.

    Args:
        task: the model's; ``state``: its, whose ``training`` says on what. What is needed of it is taken now.
    """

    def __init__(self, task: ModelTask, state: State) -> None:
        self._task = task
        self._state = copy.copy(state)
        self._found: Trained | None = None
        self._thread = threading.Thread(target=self._run, name=f"headrace-train-{task.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with pinned(self._task.learner):
            self._found = train_pending(self._task, self._state)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def result(self, step: int) -> tuple[VersionChange, Pieces | None]:
        """Return the change to be recorded, and the new model's state in pieces, where there is one.

        Args:
            step: the last one recorded, which tells this training's state from others'.
        """
        found, previous, pending = self._found, self._state.version, self._state.training
        assert pending is not None
        if found is None:
            return VersionChange(None, previous, by=pending.by, refused="the training died"), None
        about = dict(found.about)
        if found.learner is None:
            reason = str(about.get("reason") or "nothing came of it")
            return VersionChange(None, previous, by=pending.by, training=about, refused=reason), None
        about |= {"words": {name: list(words) for name, words in found.words.items()}, "sizes": dict(found.sizes)}
        pieces = dump_pieces(found.learner.state())
        # As a replay will read it.
        learner = copy.deepcopy(self._task.learner)
        learner.restore(dict(load_state(b"".join(pieces))))
        known = {name: len(words) for name, words in found.words.items()}
        rows = int(about.get("learned", about["rows"]))
        to = ModelVersion(learner, previous + 1, pending.position, rows, known)
        artifact = artifact_name(self._task.name, to.number, f"trained-{step}")
        return VersionChange(to, previous, artifact, pending.by, about), pieces
