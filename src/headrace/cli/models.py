"""Commands about models: their versions, going back to one, what they were at any place, and taking one away."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli.admin_requests import StoppedOption, asked
from headrace.cli.console import model_rows, print_table, replay_progress, short_model, short_version, talk
from headrace.cli.log import JsonOption, LogOption, reading, writing
from headrace.cli.pipeline_file import load_app
from headrace.errors import DeclarationError, HeadraceError, LogError
from headrace.inspect.export import Exported, export
from headrace.inspect.messages import to_json
from headrace.inspect.scoreboard import print_scores
from headrace.learn.state import dump_pieces
from headrace.log.base import Log
from headrace.plan.blueprint import task_from
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.registry import models as registry
from headrace.registry.requests import Request, put_request, whoami
from headrace.registry.versions import VersionList, VersionRecord, artifact_name
from headrace.replay import version_state as kept
from headrace.replay.explain import explain as explained
from headrace.replay.explain import range_text
from headrace.replay.lineage import kept_state, refuse_current, tag_version
from headrace.replay.rebuild import Place, Rebuilt
from headrace.replay.rebuild import rebuild as rebuilt_at

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


class Start(StrEnum):
    """Where a reset model begins."""

    earliest = "earliest"
    latest = "latest"


# -- looking ----------------------------------------------------------------------------------------------------------


@models.command("list")
def models_list(log: LogOption = None, as_json: JsonOption = False) -> None:
    """Version, position, rows learned, size and hash of every model.

    Example: headrace models list --log iris.headrace
    """
    with reading(log) as held:
        found = model_rows(held)
    if as_json:
        print(to_json(found))
    else:
        print_table([short_model(row) for row in found], title="models")


@models.command("show")
def models_show(name: NameArgument, log: LogOption = None, as_json: JsonOption = False) -> None:
    """One model: figures, declaration, checkpoints, its versions and where they come from, its newest scores.

    Example: headrace models show species --log iris.headrace
    """
    with reading(log) as held:
        about = next((row for row in model_rows(held) if row["model"] == name), None)
        if about is None:
            raise _no_model(held, name)
        declared = registry.read_model(held, name) or {}
        shelf = VersionList.read(held, name)
        versions = [kept.about(held, shelf, one) for one in shelf]
        checkpoints = registry.checkpoint_steps(held, name)
        scores = kept.newest_scores(held, name)
    about |= {"declared": declared.get("fingerprint", {}), "versions": versions, "checkpoints": checkpoints}
    about["scores"] = scores
    if as_json:
        print(to_json(about))
        return
    about["versions"] = len(versions)
    del about["scores"]
    print_table([{"": key, "value": to_json(value)} for key, value in about.items()], title=name)
    print_table([short_version(one) for one in versions], title="versions")
    print_scores(scores)


@models.command("diff")
def models_diff(
    name: NameArgument,
    a: VersionArgument,
    b: VersionArgument,
    log: LogOption = None,
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """How two versions differ: metrics, positions, parameters, and how far their numbers have moved.

    Example: headrace models diff species 1 3 --log iris.headrace
    """
    with reading(log) as held:
        shelf = _shelf(held, name)
        found = kept.diff(held, shelf, shelf.find(a), shelf.find(b), _rebuild(held, name, file))
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
        [{"": key, f"version {found['a']}": to_json(one["a"]), f"version {found['b']}": to_json(one["b"])}
         for key, one in found["positions"].items()],
        title=f"{name}: versions {found['a']} and {found['b']}",
    )  # fmt: skip
    if scored:
        print_table(scored, title="metrics")
    for line in found["parameters"]:
        talk.print(f"declared {line}", highlight=False)
    print_table([one for one in found["state"] if one["changed"]], title="what moved")


def explain(
    topic: Annotated[str, typer.Argument(help="The topic of a model's predictions.")],
    offset: Annotated[int, typer.Argument(help="The offset of a row in it.")],
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which version of a model made a prediction, and which rows it had learned.

    Example: headrace explain iris_predictions 41 --log iris.headrace
    """
    with reading(log) as held:
        found = explained(held, topic, offset)
    if as_json:
        print(to_json(found))
        return
    shown = {key: value for key, value in found.items() if key not in ("learned", "lineage")}
    print_table([{"": key, "value": to_json(value)} for key, value in shown.items()], title=f"{topic}, row {offset}")
    for line in range_text(found["learned"]):
        talk.print(f"learned {line}", highlight=False)
    for one in found["lineage"]:
        talk.print(f"version {one['version']}: {one['reason']} ({one['by']})", highlight=False)


# -- changing ---------------------------------------------------------------------------------------------------------


@models.command("reset")
def models_reset(
    name: NameArgument,
    log: LogOption = None,
    start: Annotated[
        Start, typer.Option("--from", help="earliest: learn again from the log; latest: begin with new rows.")
    ] = Start.earliest,
    as_json: JsonOption = False,
) -> None:
    """Forget what a model has learned: it begins a new version. Rows already answered are not answered again.

    Example: headrace models reset species --log iris.headrace
    """
    with writing(log) as held:
        state = kept.newest_state(held, name)
        try:
            with held.transaction() as txn:
                version = registry.reset(
                    held,
                    txn,
                    name,
                    relearn=start is Start.earliest,
                    ts_us=time.time_ns() // 1000,
                    by=whoami(),
                    state=None if state is None else dump_pieces(state),
                )
        except KeyError:
            raise _no_model(held, name) from None
    if as_json:
        print(to_json({"model": name, "version": version, "from": start.value}))
    else:
        talk.print(f"{name}: version {version} begins from the {start.value} row")


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
            _shelf(held, name)
            rebuilt = _rebuild(held, name, file)(Place.parse(at))
        version = str(rebuilt.version.number)
    about = {} if rebuilt is None else _about_rebuilt(rebuilt)
    request = Request("rollback", name, str(version), whoami(), rebuilt=about)
    state = None if rebuilt is None else dump_pieces(rebuilt.state)

    def store(held: Log) -> dict[str, Any]:
        shelf = _shelf(held, name)
        one = shelf.find(request.version)
        refuse_current(one, shelf.current.version if shelf.current else 0, about)
        if state is None:
            kept_state(held, one)
        with held.transaction() as txn:
            if state is not None:
                txn.put("artifact", artifact_name(name, one.version, about["position"] or "0"), state)
            put_request(txn, request)
        position = about["position"] if about else one.position
        return {"model": name, "parent": one.version, "position": position, "begun": False}

    result = asked(log, request, state, store, stopped=stopped)
    if as_json:
        print(to_json(result))
    elif "version" not in result:
        talk.print(f"{name} goes on from version {result['parent']} when its pipeline starts")
    else:
        when = "begins" if result["begun"] else "begins when the open cut is complete"
        talk.print(f"{name}: version {result['version']} {when}, from version {result['parent']}")


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

    def store(held: Log) -> dict[str, Any]:
        shelf = _shelf(held, name)
        with held.transaction() as txn:
            one = tag_version(shelf, txn, request)
        return {"model": name, "version": one.version, "tags": one.tags}

    result = asked(log, request, None, store, stopped=stopped)
    if as_json:
        print(to_json(result))
    else:
        talk.print(f"{name}, version {result['version']}: {', '.join(result['tags']) or 'no tags'}")


# -- taking away ------------------------------------------------------------------------------------------------------


@models.command("rebuild")
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
    """The model as it was there, bit for bit: the nearest checkpoint, then the recorded steps. Changes nothing.

    Example: headrace models rebuild species --at 0/1932A28:3 --log iris.headrace
    """
    with reading(log) as held:
        shelf = _shelf(held, name)
        found = _rebuild(held, name, file, show=not as_json)(Place.parse(at))
        result = found.to_dict()
        if to is not None:
            one = _as_rebuilt(shelf, found, result)
            result["files"] = export(to, _exported(held, shelf, one, found.state, file))
    if as_json:
        print(to_json(result))
    else:
        print_table([{"": key, "value": to_json(value)} for key, value in result.items()], title=name)


@models.command("export")
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
        shelf = _shelf(held, name)
        chosen = shelf.find(version) if version is not None else shelf.current
        assert chosen is not None
        state = kept.state_of(held, chosen, _rebuild(held, name, file))
        one = VersionRecord.from_dict({**chosen.to_dict(), **kept.about(held, shelf, chosen)})
        files = export(to, _exported(held, shelf, one, state, file))
    if as_json:
        print(to_json({"model": name, "version": one.version, "hash": one.hash, "to": str(to), "files": files}))
    else:
        talk.print(f"{name}, version {one.version}: {', '.join(files)} in {to}", highlight=False)


# -- finding things ---------------------------------------------------------------------------------------------------


def _no_model(log: Log, name: str) -> LogError:
    known = ", ".join(log.records("model")) or "none"
    return LogError(f"the log has no model «{name}»", advice=f"Its models: {known}.")


def _shelf(log: Log, name: str) -> VersionList:
    shelf = VersionList.read(log, name)
    if registry.read_model(log, name) is None or shelf.current is None:
        raise _no_model(log, name)
    return shelf


def _declared(log: Log, name: str, file: str | None, *, repeats: bool = True) -> tuple[Plan, ModelTask]:
    """The model's plan: of the pipeline's file, else of what the log keeps of the declaration.

    Args:
        repeats: whether its steps are to be repeated, for which the log does not know enough of one that is graded.

    Raises:
        DeclarationError: neither says it, or the file declares another one.
    """
    model = registry.read_model(log, name) or {}
    app, fingerprint = str(model.get("app", "")), model.get("fingerprint") or {}
    if file is not None:
        plan = load_app(file).plan()
        task = next((one for one in plan.models if one.name == name), None)
        if task is None:
            raise DeclarationError(f"{file} declares no model «{name}»")
        changed = registry.differences(fingerprint, task.fingerprint()) if fingerprint else []
        if changed:
            raise DeclarationError(f"{file} declares «{name}» differently from the log: {'; '.join(changed)}")
        return plan, task
    made = model.get("blueprint")
    reason = "it is made of what is not kept in a log (functions, classes of your own, transformed streams)"
    if made and made.get("derived") and repeats:
        reason = "it is graded or trained anew, which only its file says how"
    elif made:
        try:
            task = task_from(name, made)
        except HeadraceError as error:
            reason = error.message
        else:
            own = task.fingerprint()
            if not registry.differences({key: one for key, one in fingerprint.items() if key in own}, own):
                return Plan(app, "", tasks=(task,)), task
            reason = "what the log keeps of it makes another one with these libraries"
    raise DeclarationError(
        f"the log alone does not say how to make «{name}»: {reason}", advice="Give the pipeline's file: --file FILE."
    )


def _rebuild(log: Log, name: str, file: str | None, *, show: bool = False) -> Callable[[Place], Rebuilt]:
    def at(place: Place) -> Rebuilt:
        plan, task = _declared(log, name, file)
        progress = replay_progress() if show else None
        shown = None if progress is None else lambda step, last: progress(name, step, last)
        return rebuilt_at(plan, task, log, place, on_step=shown)

    return at


def _about_rebuilt(found: Rebuilt) -> dict[str, Any]:
    position = str(found.version.position) if found.version.position else None
    return {"position": position, "rows": found.version.rows, "known": found.known}


def _as_rebuilt(shelf: VersionList, found: Rebuilt, result: dict[str, Any]) -> VersionRecord:
    """The version that it was, with what it had learned there."""
    of = shelf.find(found.version.number)
    about = {name: result[name] for name in ("position", "rows", "hash", "learned")}
    return VersionRecord.from_dict({**of.to_dict(), **about, "metrics": {}, "tags": [], "known": found.known})


def _exported(
    log: Log, shelf: VersionList, version: VersionRecord, state: dict[str, Any], file: str | None
) -> Exported:
    def learner() -> Any:
        return _declared(log, version.model, file, repeats=False)[1].learner

    return Exported(version, shelf.fingerprint(version), shelf.lineage(version), state, learner)
