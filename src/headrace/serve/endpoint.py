"""The paths that models declare (`Model.serve`), and ``POST /train``: the API of the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa

from headrace.batch import told_apart
from headrace.errors import HeadraceError, WaitTimeout
from headrace.serve.exchange import JSON, Problem, Request, Response, field_error, json_response
from headrace.serve.models import TAKES_OVER, Busy, NoModel, RowRefused, VersionInfo
from headrace.serve.parameters import AT_LEAST, DEADLINE, Endpoint
from headrace.serve.service import PredictionService, reach_wanted

_EXTRA = "Extra inputs are not permitted"
_ARROW = {"number": pa.float64(), "integer": pa.int64(), "text": pa.string()}

_ANSWERS = ("prediction", "status", "model", "model_version", "model_position")


class Prediction:
    """``GET /prediction?length=…``: one row, one answer.

    Args:
        columns: of the model's features, in order.
    """

    def __init__(self, service: PredictionService, endpoint: Endpoint) -> None:
        description = service.models.descriptions[endpoint.model]
        self._service = service
        self._endpoint = endpoint
        self._parameters = {parameter.name: parameter for parameter in endpoint.parameters}
        columns = [column.name for column in description.columns]
        place = {column: i for i, column in enumerate(columns)}
        self._width = len(columns)
        self._places = {
            parameter.name: place[parameter.column] for parameter in endpoint.parameters if parameter.column in place
        }
        self._others = [parameter for parameter in endpoint.parameters if parameter.column not in place]
        self._features = [parameter for parameter in endpoint.parameters if parameter.column in place]
        self._type = description.answers

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        query = self._read(request)
        endpoint = self._endpoint
        if AT_LEAST in query or DEADLINE in query or request.header(b"headrace-at-least") is not None:
            await reach_wanted(self._service, endpoint.model, request, query)
        values = self._values(query)
        row: list[Any] = [None] * self._width
        for name, place in self._places.items():
            row[place] = values[name]
        (value,), info = await self._service.predict(endpoint.model, [row])
        if isinstance(value, RowRefused):
            raise Problem(422, [self._refusal(value, query)], headers=info.headers)
        if endpoint.log_to:
            await self._service.record(endpoint.log_to, self._logged(values, value, info))
        if endpoint.digits is not None and isinstance(value, float):
            value = round(value, endpoint.digits)
        answer = {endpoint.output: value}
        if endpoint.model_time:
            answer["ModelTime"] = info.model_time
        return Response(orjson.dumps(answer), 200, [JSON, *info.headers])

    def _read(self, request: Request) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in request.query():
            if name in found:
                raise Problem(422, [field_error("query", name, msg="Field given twice", given=value)])
            found[name] = value
        return found

    def _values(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Values by parameter.

        Raises:
            Problem: 422 with every field that is field_error, and why.
        """
        values: dict[str, Any] = {}
        problems = []
        for name, parameter in self._parameters.items():
            text = query.get(name)
            if text is None:
                values[name] = None
                if not parameter.optional:
                    problems.append(field_error("query", name, msg="Field required", kind="missing"))
                continue
            try:
                values[name] = parameter.parse(text)
            except ValueError as error:
                problems.append(
                    field_error("query", name, msg=str(error), kind=f"{parameter.type}_parsing", given=text)
                )
        unknown = [name for name in query if name not in self._parameters and name not in (AT_LEAST, DEADLINE)]
        problems += [field_error("query", name, msg=_EXTRA, kind="extra_forbidden") for name in unknown]
        if problems:
            raise Problem(422, problems)
        return values

    def _refusal(self, refused: RowRefused, query: Mapping[str, str]) -> dict[str, Any]:
        named = [feature.name for feature in self._features if feature.column == refused.column]
        given = query.get(named[0]) if named else None
        return field_error("query", *named, msg=refused.message, given=given)

    def _logged(self, values: Mapping[str, Any], value: Any, info: VersionInfo) -> pa.RecordBatch:
        """The row as the model's topic of predictions has it."""
        columns: dict[str, pa.Array] = {}
        names = [other.column for other in (*self._others, *self._features)]
        # As in topics of predictions.
        beside = dict(zip(names, told_apart(names, _ANSWERS), strict=True))
        for other in (*self._others, *self._features):
            columns[beside[other.column]] = pa.array([values[other.name]], _ARROW[other.type])
        columns["prediction"] = pa.array([value], self._type)
        columns["status"] = pa.array(["ok"])
        columns["model"] = pa.array([info.model])
        columns["model_version"] = pa.array([info.version], pa.int64())
        columns["model_position"] = pa.array([info.position], pa.string())
        return pa.RecordBatch.from_pydict(columns)


class Training:
    """``POST /train``: a new version now."""

    def __init__(self, service: PredictionService) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        """Train, and return the new version."""
        await request.body()
        model = self._chosen(dict(request.query()))
        models, timeout = self._service.models, self._service.settings.train_timeout
        try:
            done = await self._service.blocking(lambda: models.train(model, timeout))
        except Busy as busy:
            raise Problem(409, busy.message, model=model, **self._now(model)) from None
        except (NoModel, WaitTimeout):
            raise
        except HeadraceError as error:
            text = f"{error.message}. {error.advice}" if error.advice else error.message
            raise Problem(503 if error.retry else 409, text, model=model, **self._now(model)) from None
        # A user and a machine: nobody's business here.
        done = {name: value for name, value in done.items() if name != "by"}
        if done["status"] not in TAKES_OVER:
            # It runs beside the pipeline, or answers beside the current one: that one has not changed yet.
            return json_response({"model": model, **done}, 202)
        info = self._service.models.current(model).info
        if info.version != done["version"]:  # there is a later one already
            info = (await self._service.version(model, str(done["version"]))).info
        return json_response({"model": model, **done, "ModelTime": info.model_time}, 200, info.headers)

    def _now(self, model: str) -> dict[str, Any]:
        info = self._service.models.current(model).info
        return {"version": info.version, "position": info.position}

    def _chosen(self, query: dict[str, str]) -> str:
        names = list(self._service.models.descriptions)
        extra = [name for name in query if name != "model"]
        if extra:
            raise Problem(422, [field_error("query", extra[0], msg=_EXTRA, kind="extra_forbidden")])
        if "model" not in query:
            if len(names) != 1:
                msg = f"Field required: there are {', '.join(names)}"
                raise Problem(422, [field_error("query", "model", msg=msg, kind="missing")])
            return names[0]
        if query["model"] not in names:
            raise NoModel(f"there is no model «{query['model']}»", advice=f"There are: {', '.join(names)}.")
        return query["model"]
