"""Commands about models: versions and going back to one, training anew, what they were at any place, exporting one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from headrace.cli.arguments import JsonOption, LogOption, WideOption, load_app, location, reading, writing
from headrace.cli.console import (
    no_hash,
    print_result,
    print_rows,
    print_table,
    print_values,
    replay_progress,
    report,
    short_model,
    short_version,
)
from headrace.cli.events import with_events
from headrace.engines.local.running import trained
from headrace.errors import DeclarationError, LearnError
from headrace.inspect.export import Exported, export
from headrace.inspect.messages import to_json
from headrace.inspect.models import metrics_of, model_rows, print_scores
from headrace.learn.base import Learner
from headrace.learn.state import dump_pieces
from headrace.log.base import Log
from headrace.plan.blueprint import declared_by_log, declared_by_plan
from headrace.plan.fingerprint import declaration_differences
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.registry import models as registry
from headrace.registry.requests import Request, put_continue, whoami
from headrace.registry.versions import Pieces, VersionList, VersionRecord
from headrace.replay import model_changes, version_state
from headrace.replay.continuation import why_not_continue
from headrace.replay.explain import explain as explain_row
from headrace.replay.explain import range_text
from headrace.replay.model_changes import no_model, refuse_running_cluster, versions_in
from headrace.replay.rebuild import Place, Rebuilt, rebuild

models = typer.Typer(help="A log's models and their versions.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The model.")]
VersionArgument = Annotated[str, typer.Argument(help="A version's number, or a tag.")]
AtOption = Annotated[
    str | None,
    typer.Option("--at", help="A position (0/1932A28:3), an LSN (0/1932A28) or a time (2026-01-31T12:00:00Z)."),
]
FileOption = Annotated[
    str | None, typer.Option("--file", help="The pipeline's file, where the log alone does not say how to make it.")
]

StoppedOption = Annotated[
    bool, typer.Option("--stopped", help="On Kafka: the pipeline does not run. One that does would be stopped by this.")
]


# -- looking ----------------------------------------------------------------------------------------------------------


@models.command("list")
def models_list(log: LogOption = None, as_json: JsonOption = False, wide: WideOption = False) -> None:
    """Show version, position, rows learned, size and hash of every model.

    Example: headrace models list --log iris.headrace
    """
    with reading(log) as held:
        found = model_rows(held)
    print_rows(found, as_json=as_json, title="models", short=short_model, wide=wide)


@models.command("show")
def models_show(
    name: NameArgument, log: LogOption = None, as_json: JsonOption = False, wide: WideOption = False
) -> None:
    """Show one model: figures, declaration, checkpoints, its versions and where they come from, its newest scores.

    Example: headrace models show species --log iris.headrace
    """
    with reading(log) as held:
        about = next((row for row in model_rows(held) if row["model"] == name), None)
        if about is None:
            raise no_model(held, name)
        declared = registry.read_model(held, name)
        versions = VersionList.read(held, name)
        listed = [version_state.about(held, versions, version) for version in versions]
        checkpoints = registry.checkpoint_steps(held, name)
        scores = version_state.newest_scores(held, name)
        redeclared = [asdict(each) for each in registry.read_declarations(held, name) if each.changes]
    about |= {"declared": declared["fingerprint"] if declared else {}, "versions": listed, "checkpoints": checkpoints}
    about["redeclared"] = [{key: each[key] for key in ("step", "ts_us", "by", "changes")} for each in redeclared]
    about["scores"] = scores
    if as_json:
        print(to_json(about))
        return
    about["versions"] = len(listed)
    del about["scores"], about["redeclared"]
    if about["hash"] is None:
        about["hash"] = no_hash(about)
    print_values(about, title=name, wide=wide)
    print()
    print_table(listed, title="versions", short=short_version, wide=wide)
    if sys.stdout.isatty():
        print_scores(scores)
    else:
        print()
        print_table([{**line, **metrics_of(line)} for line in scores])
    for each in redeclared:
        for line in each["changes"]:
            report(f"from step {each['step']} on: {line} ({each['by']})")


@models.command("diff")
@with_events
def models_diff(
    name: NameArgument,
    a: VersionArgument,
    b: VersionArgument,
    log: LogOption = None,
    file: FileOption = None,
    as_json: JsonOption = False,
    wide: WideOption = False,
) -> None:
    """Compare two versions: metrics, positions, parameters, and how far their numbers have moved.

    Example: headrace models diff species 1 3 --log iris.headrace
    """
    with reading(log) as held:
        versions = versions_in(held, name)
        found = version_state.diff(held, versions, versions.find(a), versions.find(b), _rebuilder(held, name, file))
    if as_json:
        print(to_json(found))
        return
    scored = [
        {"stream": stream, "metric": metric, **pair}
        for stream, metrics in found["metrics"].items()
        for metric, pair in metrics.items()
        if pair["change"] is not None
    ]
    print_table(
        [{"name": key, f"version {found['a']}": pair["a"], f"version {found['b']}": pair["b"]}
         for key, pair in found["positions"].items()],
        title=f"{name}: versions {found['a']} and {found['b']}",
        wide=wide,
    )  # fmt: skip
    if scored:
        print()
        print_table(scored, title="metrics", wide=wide)
    for line in found["parameters"]:
        report(f"declared {line}")
    print()
    print_table([array for array in found["state"] if array["changed"]], title="what moved", wide=wide)


def explain(
    topic: Annotated[str, typer.Argument(help="The topic of a model's predictions.")],
    offset: Annotated[int, typer.Argument(help="The offset of a row in it.")],
    log: LogOption = None,
    as_json: JsonOption = False,
    wide: WideOption = False,
) -> None:
    """Say which version of a model made a prediction, and which rows it had learned.

    Example: headrace explain iris_predictions 41 --log iris.headrace
    """
    with reading(log) as held:
        found = explain_row(held, topic, offset)
    if as_json:
        print(to_json(found))
        return
    shown = {key: value for key, value in found.items() if key not in ("learned", "lineage")}
    print_values(shown, title=f"{topic}, row {offset}", wide=wide)
    for line in range_text(found["learned"]):
        report(f"learned {line}")
    for version in found["lineage"]:
        report(f"version {version['version']}: {version['reason']} ({version['by']})")


# -- changing ---------------------------------------------------------------------------------------------------------


@models.command("reset")
def models_reset(
    name: NameArgument,
    log: LogOption = None,
    start: Annotated[
        Literal["earliest", "latest"],
        typer.Option("--from", help="earliest: learn again from the log; latest: begin with new rows."),
    ] = "earliest",
    as_json: JsonOption = False,
) -> None:
    """Forget what a model has learned: it begins a new version. Rows already predicted are not predicted again.

    Example: headrace models reset species --log iris.headrace
    """
    with writing(log) as held:
        version = model_changes.reset(held, name, relearn=start == "earliest", by=whoami())
    result = {"model": name, "version": version, "from": start}
    print_result(result, f"{name}: version {version} begins from the {start} row", as_json=as_json)


@models.command("continue")
def models_continue(
    name: NameArgument,
    log: LogOption = None,
    file: FileOption = None,
    stopped: StoppedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let a model that is declared differently now go on from what it has learned, as a new version.

    Its pipeline is stopped, and does so when it starts: rows of its open cut are learned as it was declared, those that
    follow as it is. That is refused, with the reason, where what was learned does not fit the new declaration: other
    features or another target, another learner, parameters that decide what its numbers mean. With --file that is told
    at once.

    Example: headrace models continue species --log iris.headrace --file iris.py
    """
    where = location(log)
    refuse_running_cluster(where, stopped)
    result: dict[str, Any] = {"model": name, "changes": None}
    with writing(where) as held:
        versions_in(held, name)
        if file is not None:
            result["changes"] = _changes_that_fit(held, name, file)
        with held.transaction() as txn:
            put_continue(txn, name, whoami(), time.time_ns() // 1000)
    for change in result["changes"] or ():
        report(change)
    print_result(result, f"{name} goes on from what it has learned when its pipeline starts", as_json=as_json)


def _changes_that_fit(log: Log, name: str, file: str) -> list[str]:
    """Return how a file declares a model differently from the log.

    Raises:
        DeclarationError: it has no such model.
        LearnError: what the model has learned does not fit that.
    """
    task = next((task for task in load_app(file).plan().models if task.name == name), None)
    if task is None:
        raise DeclarationError(f"{file} declares no model «{name}»")
    reason = why_not_continue(log, task)
    if reason:
        advice = "Learn again from the log (headrace models reset), give it a new name, or undo the change."
        raise LearnError(f"«{name}» cannot go on from what it has learned: {reason}", advice=advice)
    known = registry.read_model(log, name)
    return declaration_differences(known["fingerprint"] if known else {}, task.fingerprint())


@models.command("rollback")
def models_rollback(
    name: NameArgument,
    version: Annotated[str | None, typer.Argument(help="A version's number, or a tag.")] = None,
    at: AtOption = None,
    log: LogOption = None,
    file: FileOption = None,
    stopped: StoppedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let a model go on from an earlier version: it begins a new one with that one's state.

    The pipeline may run: it does so when its open cut is complete. One that is stopped does so when it starts. Rows are
    learned from where the pipeline is then; those that were learned since the version ended are not learned again.

    Example: headrace models rollback species 3 --log iris.headrace
    """
    if (version is None) == (at is None):
        raise DeclarationError("which version?", advice="Give its number or a tag, or --at POSITION.")
    rebuilt = None
    if at is not None:
        with reading(log) as held:
            versions_in(held, name)
            rebuilt = _rebuilder(held, name, file)(Place.parse(at))
        version = str(rebuilt.version.number)
    about = {} if rebuilt is None else _about_rebuilt(rebuilt)
    request = Request("rollback", name, str(version), whoami(), rebuilt=about)
    state = None if rebuilt is None else dump_pieces(rebuilt.state)

    result = _change(log, request, state, stopped=stopped)
    if "version" in result:
        when = "begins" if result["begun"] else "begins when the open cut is complete"
        line = f"{name}: version {result['version']} {when}, from version {result['parent']}"
    else:
        line = f"{name} goes on from version {result['parent']} when its pipeline starts"
    print_result(result, line, as_json=as_json)


@models.command("tag")
def models_tag(
    name: NameArgument,
    version: VersionArgument,
    tag: Annotated[str, typer.Argument(help="A word; another version that has it loses it.")],
    delete: Annotated[bool, typer.Option("--delete", help="Take it away.")] = False,
    log: LogOption = None,
    stopped: StoppedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Name a version. The state of one with a tag is kept; the current one's when it has ended.

    Example: headrace models tag species 3 best --log iris.headrace
    """
    request = Request("tag", name, version, whoami(), tag=tag, delete=delete)
    result = _change(log, request, stopped=stopped)
    line = f"{name}, version {result['version']}: {', '.join(result['tags']) or 'no tags'}"
    print_result(result, line, as_json=as_json)


@models.command("retrain")
@with_events
def models_retrain(
    name: NameArgument, log: LogOption = None, stopped: StoppedOption = False, as_json: JsonOption = False
) -> None:
    """Train a model anew now, on the rows that its declaration says; it begins a new version.

    The pipeline may run. One that is stopped does it when it starts.

    Example: headrace models retrain weight --log fish.headrace
    """
    _train("retrain", name, log, stopped, as_json)


@models.command("promote")
@with_events
def models_promote(
    name: NameArgument, log: LogOption = None, stopped: StoppedOption = False, as_json: JsonOption = False
) -> None:
    """Let the model that predicts beside the current one take over.

    Example: headrace models promote weight --log fish.headrace
    """
    _train("promote", name, log, stopped, as_json)


def _train(action: Literal["retrain", "promote"], name: str, log: str | None, stopped: bool, as_json: bool) -> None:
    request = Request(action, name, 0, whoami())
    result = _change(log, request, stopped=stopped)
    if result["status"] == "asked":
        line = f"{name}: {action} when its pipeline starts"
    else:
        trained(name, result)
        version = f", version {result['version']}" if "version" in result else ""
        line = f"{name}: {result['status']}{version}, {result.get('rows', 0)} rows"
    print_result(result, line, as_json=as_json)


def _change(log: str | None, request: Request, state: Pieces | None = None, *, stopped: bool) -> dict[str, Any]:
    where = location(log)
    return model_changes.change(where, lambda: writing(where), request, state, stopped=stopped)


# -- taking away ------------------------------------------------------------------------------------------------------


@models.command("rebuild")
@with_events
def models_rebuild(
    name: NameArgument,
    at: Annotated[
        str, typer.Option("--at", help="A position (0/1932A28:3), an LSN (0/1932A28) or a time (2026-01-31T12:00Z).")
    ],
    to: Annotated[Path | None, typer.Option("--to", help="Export it into this folder.")] = None,
    log: LogOption = None,
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the model as it was there, bit for bit: the nearest checkpoint, then the recorded steps. Changes nothing.

    Example: headrace models rebuild species --at 0/1932A28:3 --log iris.headrace
    """
    with reading(log) as held:
        versions = versions_in(held, name)
        found = _rebuilder(held, name, file, show=not as_json)(Place.parse(at))
        result = found.to_dict()
        if to is not None:
            rebuilt = _as_rebuilt(versions, found, result)
            result["files"] = export(to, _exported(held, versions, rebuilt, found.state, file))
    if as_json:
        print(to_json(result))
    else:
        print_values(result, title=name)


@models.command("export")
@with_events
def models_export(
    name: NameArgument,
    to: Annotated[Path, typer.Option("--to", help="A folder, made where it is missing.")],
    version: Annotated[str | None, typer.Argument(help="A version's number, or a tag; the current one.")] = None,
    log: LogOption = None,
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a folder that the model's library loads without Headrace, with a model card.

    Example: headrace models export species 3 --to species-3 --log iris.headrace
    """
    with reading(log) as held:
        versions = versions_in(held, name)
        chosen = versions.find(version) if version is not None else versions.current
        assert chosen is not None
        state = version_state.state_of(held, chosen, _rebuilder(held, name, file))
        record = VersionRecord.from_dict({**chosen.to_dict(), **version_state.about(held, versions, chosen)})
        files = export(to, _exported(held, versions, record, state, file))
    result = {"model": name, "version": record.version, "hash": record.hash, "to": str(to), "files": files}
    print_result(result, f"{name}, version {record.version}: {', '.join(files)} in {to}", as_json=as_json)


# -- finding things ---------------------------------------------------------------------------------------------------


def _declared(log: Log, name: str, file: str | None, *, repeats: bool = True) -> tuple[Plan, ModelTask]:
    """Return the model's plan: of the pipeline's file, else of what the log keeps of the declaration."""
    record = registry.read_model(log, name)
    if record is None:
        raise no_model(log, name)
    if file is None:
        return declared_by_log(name, record, repeats=repeats)
    plan = load_app(file).plan()
    return plan, declared_by_plan(plan, name, record, where=file)


def _rebuilder(log: Log, name: str, file: str | None, *, show: bool = False) -> Callable[[Place], Rebuilt]:
    def at(place: Place) -> Rebuilt:
        plan, task = _declared(log, name, file)
        progress = replay_progress() if show else None
        shown = None if progress is None else lambda step, last: progress(name, step, last)
        return rebuild(plan, task, log, place, on_step=shown)

    return at


def _about_rebuilt(found: Rebuilt) -> dict[str, Any]:
    position = str(found.version.position) if found.version.position else None
    return {"position": position, "rows": found.version.rows, "known": found.known}


def _as_rebuilt(versions: VersionList, found: Rebuilt, result: dict[str, Any]) -> VersionRecord:
    """Return the version that it was, with what it had learned there."""
    of = versions.find(found.version.number)
    about = {name: result[name] for name in ("position", "rows", "hash", "learned")}
    return VersionRecord.from_dict({**of.to_dict(), **about, "metrics": {}, "tags": [], "known": found.known})


def _exported(
    log: Log, versions: VersionList, version: VersionRecord, state: dict[str, Any], file: str | None
) -> Exported:
    def learner() -> Learner:
        return _declared(log, version.model, file, repeats=False)[1].learner

    return Exported(version, versions.fingerprint(version), versions.lineage(version), state, learner)
