"""Changes of a model that people ask for, by a command or on a page: another version, a tag, a training, a reset.

A pipeline that is stopped finds the wish in its log, or it is done there. One that runs holds its log's file: it is
asked (`headrace.registry.requests`), and answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from headrace.errors import LogError, LogLocked
from headrace.kafka.settings import SCHEME
from headrace.learn.state import dump_pieces
from headrace.log.base import Log
from headrace.registry import models as registry
from headrace.registry.requests import FOLDER, Request, ask, put_request
from headrace.registry.versions import Pieces, VersionList, artifact_name
from headrace.replay.lineage import kept_state, refuse_current, tag_version
from headrace.replay.version_state import newest_state

REQUEST_SECONDS = 30.0
TRAINING_SECONDS = 600.0
Writing = Callable[[], AbstractContextManager[Log]]


def change(
    where: str, writing: Writing, request: Request, state: Pieces | None = None, *, stopped: bool = False
) -> dict[str, Any]:
    """Change the log of a pipeline that is stopped, or ask the one that runs.

    Args:
        where: the log's file, or its place on a cluster.
        writing: opens it to write.
        state: a rebuilt one, that goes with a rollback.
        stopped: of a log on a cluster: no pipeline runs on it.

    Returns:
        What came of it: of a training ``status``, ``asked`` where it waits for the pipeline's start; of a rollback
        ``parent`` and ``begun``, and ``version`` where a pipeline runs; of a tag ``version`` and ``tags``.

    Raises:
        HeadraceError: there is no such model or version, it cannot be gone back to, or as the pipeline says.
    """
    refuse_running_cluster(where, stopped)
    with ExitStack() as stack:
        try:
            log = stack.enter_context(writing())
        except LogLocked:
            timeout = TRAINING_SECONDS if request.action in ("retrain", "promote") else REQUEST_SECONDS
            return ask(Path(f"{Path(where).resolve()}{FOLDER}"), request, state, timeout=timeout)
        if request.action == "tag":
            return _tag(log, request)
        if request.action == "rollback":
            return _roll_back(log, request, state)
        return _ask_for_training(log, request)


def refuse_running_cluster(where: str, stopped: bool) -> None:
    """Refuse to write to a log on a cluster, where nobody knows whether its pipeline runs.

    Raises:
        LogLocked: it is on one, and nobody says that its pipeline is stopped.
    """
    if where.startswith(SCHEME) and not stopped:
        raise LogLocked(
            f"writing to {where} would stop the pipeline that writes it, if one runs",
            advice="Stop the pipeline, then say so: --stopped. (In Python: running.rollback(…), while it runs.)",
        )


def reset(log: Log, model: str, *, relearn: bool, by: str) -> int:
    """Let a model forget what it has learned; return its new version.

    Args:
        log: open to write: its pipeline is stopped.
        relearn: whether it learns again from the log, or begins with new rows.

    Raises:
        LogError: there is no such model.
    """
    state = newest_state(log, model)
    pieces = None if state is None else dump_pieces(state)
    try:
        with log.transaction() as txn:
            now_us = time.time_ns() // 1000
            return registry.reset(log, txn, model, relearn=relearn, ts_us=now_us, by=by, state=pieces)
    except KeyError:
        raise no_model(log, model) from None


def no_model(log: Log, model: str) -> LogError:
    """Return the error that a log has no such model."""
    known = ", ".join(log.records("model")) or "none"
    return LogError(f"the log has no model «{model}»", advice=f"Its models: {known}.")


def versions_in(log: Log, model: str) -> VersionList:
    """Return the versions of a model.

    Raises:
        LogError: there is no such model.
    """
    versions = VersionList.read(log, model)
    if registry.read_model(log, model) is None or versions.current is None:
        raise no_model(log, model)
    return versions


def _tag(log: Log, request: Request) -> dict[str, Any]:
    versions = versions_in(log, request.model)
    with log.transaction() as txn:
        tagged = tag_version(versions, txn, request, time.time_ns() // 1000)
    return {"model": request.model, "version": tagged.version, "tags": tagged.tags}


def _roll_back(log: Log, request: Request, state: Pieces | None) -> dict[str, Any]:
    versions, about = versions_in(log, request.model), request.rebuilt
    chosen = versions.find(request.version)
    refuse_current(chosen, versions.current.version if versions.current else 0, about)
    if state is None:
        kept_state(log, chosen)
    with log.transaction() as txn:
        if state is not None:
            txn.put("artifact", artifact_name(request.model, chosen.version, about["position"] or "0"), state)
        put_request(txn, request)
    position = about["position"] if about else chosen.position
    return {"model": request.model, "parent": chosen.version, "position": position, "begun": False}


def _ask_for_training(log: Log, request: Request) -> dict[str, Any]:
    if registry.read_model(log, request.model) is None:
        raise no_model(log, request.model)
    with log.transaction() as txn:
        put_request(txn, request)
    return {"model": request.model, "status": "asked"}
