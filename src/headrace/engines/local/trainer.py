"""A training beside the pipeline: the old model answers while a thread trains the new one."""

from __future__ import annotations

import copy
import threading

from headrace.learn.base import pinned
from headrace.learn.state import dump_pieces, load_state
from headrace.plan.task import ModelTask
from headrace.registry.records import Pieces
from headrace.registry.versions import artifact_name
from headrace.step.events import Swap
from headrace.step.retraining import trained_beside
from headrace.step.state import State
from headrace.step.training import Trained


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
            self._found = trained_beside(self._task, self._state)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def result(self, step: int) -> tuple[Swap, Pieces | None]:
        """The swap to be recorded, and the new model's state in pieces, where there is one.

        Args:
            step: the last one recorded, which tells this training's state from others'.
        """
        found, state = self._found, self._state
        asked = state.training
        assert asked is not None
        if found is None:
            return Swap(0, state.version, {}, None, 0, refused="the training died", by=asked.by), None
        about = dict(found.about)
        if found.learner is None:
            reason = str(about.get("reason") or "nothing came of it")
            return Swap(0, state.version, {}, None, 0, refused=reason, training=about, by=asked.by), None
        about |= {"words": {name: list(words) for name, words in found.words.items()}, "sizes": dict(found.sizes)}
        pieces = dump_pieces(found.learner.state())
        known = {name: len(words) for name, words in found.words.items()}
        key = artifact_name(self._task.name, state.version + 1, f"trained-{step}")
        rows = int(about.get("learned", about["rows"]))
        # As a replay will read it.
        stored = dict(load_state(b"".join(pieces)))
        swap = Swap(state.version + 1, state.version, stored, asked.position, rows, known, key, asked.by, about)
        return swap, pieces
