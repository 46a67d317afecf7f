"""`headrace models retrain` and `promote`: a model trained anew, or one that is tried out, on request."""

from __future__ import annotations

from typing import Any, Literal

from headrace.cli.admin_requests import StoppedOption, asked
from headrace.cli.console import talk
from headrace.cli.log import JsonOption, LogOption
from headrace.cli.models import NameArgument
from headrace.engines.local.running import trained
from headrace.errors import LogError
from headrace.inspect.messages import to_json
from headrace.log.base import Log
from headrace.registry.models import read_model
from headrace.registry.requests import Request, put_request, whoami

TRAINING_SECONDS = 600.0


def models_retrain(
    name: NameArgument, log: LogOption = None, stopped: StoppedOption = False, as_json: JsonOption = False
) -> None:
    """Train a model anew now, on the rows that its declaration says; it begins a new version.

    The pipeline may run. One that is stopped does it when it starts.

    Example: headrace models retrain weight --log fish.headrace
    """
    _ask("retrain", name, log, stopped, as_json)


def models_promote(
    name: NameArgument, log: LogOption = None, stopped: StoppedOption = False, as_json: JsonOption = False
) -> None:
    """Let the model that answers beside the current one take over.

    Example: headrace models promote weight --log fish.headrace
    """
    _ask("promote", name, log, stopped, as_json)


def _ask(action: Literal["retrain", "promote"], name: str, log: str | None, stopped: bool, as_json: bool) -> None:
    request = Request(action, name, 0, whoami())

    def store(held: Log) -> dict[str, Any]:
        if read_model(held, name) is None:
            raise LogError(f"the log has no model «{name}»", advice="headrace models list shows its models.")
        with held.transaction() as txn:
            put_request(txn, request)
        return {"model": name, "status": "asked"}

    result = asked(log, request, None, store, stopped=stopped, timeout=TRAINING_SECONDS)
    if result["status"] != "asked":
        trained(name, result)
    if as_json:
        print(to_json(result))
    elif result["status"] == "asked":
        talk.print(f"{name}: {action} when its pipeline starts")
    else:
        version = f", version {result['version']}" if "version" in result else ""
        talk.print(f"{name}: {result['status']}{version}, {result.get('rows', 0)} rows")
