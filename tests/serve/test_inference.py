"""The Open Inference Protocol: by its own client, by JSON and by bytes; what is refused; versions."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from tests.waiting import wait_until

from .client import FISH, Client, fish, serving

ROWS = [{"Length": 86.37, "Height": 18.74, "Species": "salmon"}, {"Length": 57.0, "Height": 12.5, "Species": "walleye"}]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def tensors(columns: dict[str, list[Any]] = COLUMNS) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": [len(values)],
            "datatype": "BYTES" if values and isinstance(values[0], str) else "FP64",
            "data": values,
        }
        for name, values in columns.items()
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(fish(tmp_path_factory.mktemp("served") / "fish.headrace"), FISH) as found:
        yield found


@pytest.fixture
def client(served: Any) -> Client:
    return served[1]  # type: ignore[no-any-return]  # typed Any by the fixture


@pytest.fixture
def expected(served: Any) -> list[float]:
    return served[0]["weight"].predict(ROWS).tolist()  # type: ignore[no-any-return]  # likewise


def test_the_protocols_own_client(client: Client, expected: list[float]) -> None:
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(client.url.removeprefix("http://")) as triton:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("weight")
        assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        about = triton.get_model_metadata("weight")
        assert [tensor["name"] for tensor in about["inputs"]] == ["Length", "Height", "Species"]
        inputs = []
        for name, values in COLUMNS.items():
            text = isinstance(values[0], str)
            one = http.InferInput(name, [len(values)], "BYTES" if text else "FP64")
            array = np.array([v.encode() for v in values], object) if text else np.array(values)
            one.set_data_from_numpy(array, binary_data=name != "Height")
            inputs.append(one)
        for outputs in (None, [http.InferRequestedOutput("prediction", binary_data=False)]):
            result = triton.infer("weight", inputs, outputs=outputs, request_id="7", model_version="1")
            assert result.as_numpy("prediction").tolist() == expected
            assert result.get_response()["id"] == "7"
            assert result.get_response()["model_version"] == "1"
        with pytest.raises(http.InferenceServerException, match="no model «other»"):
            triton.infer("other", inputs)


def test_head_is_answered_as_get_without_a_body(client: Client) -> None:
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/weight/ready", "/metrics", "/docs"):
        got, head = client.get(path), client.ask("HEAD", path)
        assert got.status == 200
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
    assert client.ask("HEAD", "/prediction", length=1, height="x", species="salmon").status == 422
    assert (client.ask("HEAD", "/train").status, client.ask("HEAD", "/nothing").status) == (405, 404)


def test_json_in_and_out(client: Client, expected: list[float]) -> None:
    got = client.post("/v2/models/weight/infer", {"id": "a", "inputs": tensors()})
    assert got.status == 200
    (output,) = got.json["outputs"]
    assert output == {"name": "prediction", "datatype": "FP64", "shape": [2], "data": expected}
    assert got.json["parameters"]["position"] == got.headers["headrace-position"]
    assert (got.json["model_name"], got.json["model_version"], got.json["id"]) == ("weight", "1", "a")


@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_a_rows_bits_do_not_depend_on_its_neighbours(client: Client, expected: list[float], count: int) -> None:
    rows = [ROWS[i % 2] for i in range(count)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    got = client.post("/v2/models/weight/infer", {"inputs": tensors(columns)})
    assert got.json["outputs"][0]["data"] == [expected[i % 2] for i in range(count)]


def test_binary_in_and_out(client: Client, expected: list[float]) -> None:
    words = b"".join(struct.pack("<I", len(text)) + text for text in (b"salmon", b"walleye"))
    lengths, heights = (np.array(COLUMNS[name], "<f8").tobytes() for name in ("Length", "Height"))
    inputs = tensors()
    for source, data in zip(inputs, (lengths, heights, words), strict=True):
        del source["data"]
        source["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    got = client.post("/v2/models/weight/infer", head + lengths + heights + words, headers)
    size = int(got.headers["inference-header-content-length"])
    assert json.loads(got.body[:size])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert np.frombuffer(got.body[size:], "<f8").tolist() == expected


def changed(**fields: Any) -> list[dict[str, Any]]:
    first, *others = tensors()
    return [{**first, **fields}, *others]


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "no JSON"),
    "no object": ([], "must be an object"),
    "no inputs": ({"inputs": []}, "must be an object with inputs"),
    "an input without a name": ({"inputs": [{}]}, "with a name"),
    "an unknown datatype": ({"inputs": changed(datatype="FP65")}, "datatype 'FP65'"),
    "a shape that is none": ({"inputs": changed(shape=[-1])}, "shape [-1]"),
    "a shape that is huge": ({"inputs": changed(shape=[2**39, 2**39])}, "shape"),
    "too few elements": ({"inputs": changed(shape=[3])}, "2 elements, its shape says 3"),
    "words for numbers": ({"inputs": changed(data=["a", "b"])}, "no FP64"),
    "null for a number": ({"inputs": changed(data=[None, 1])}, "no FP64"),
    "BYTES for numbers": ({"inputs": changed(datatype="BYTES", data=["a", "b"])}, "is BYTES"),
    "a number too large": ({"inputs": changed(datatype="INT8", data=[1, 300])}, "INT8 does not hold"),
    "a missing input": ({"inputs": tensors()[:2]}, "wants the inputs Length, Height, Species"),
    "an input twice": ({"inputs": [*tensors(), tensors()[0]]}, "twice"),
    "of different lengths": ({"inputs": changed(shape=[1], data=[1.0])}, "same number of rows"),
    "a matrix for a column": ({"inputs": changed(shape=[2, 2], data=[1.0] * 4)}, "shape [rows]"),
    "an unknown output": ({"inputs": tensors(), "outputs": [{"name": "y"}]}, "no output 'y'"),
    "no probabilities": ({"inputs": tensors(), "outputs": [{"name": "probability"}]}, "no output"),
    "an id that is no text": ({"inputs": tensors(), "id": 7}, "«id» must be a text"),
    "binary that is not there": ({"inputs": changed(parameters={"binary_data_size": 16})}, "16 bytes of binary"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_refused(client: Client, case: str) -> None:
    body, told = WRONG[case]
    got = client.post("/v2/models/weight/infer", body)
    assert got.status == 400
    assert told in got.json["error"]


def test_a_row_that_cannot_be_answered_is_named(client: Client) -> None:
    for count in (2, 100):
        columns = {name: values * (count // 2) for name, values in COLUMNS.items()}
        columns["Species"][1] = "pike"
        got = client.post("/v2/models/weight/infer", {"inputs": tensors(columns)})
        assert got.status == 422
        assert got.json["error"] == "row 1: the category «Species» is 'pike', which is not known"


@pytest.mark.parametrize("length", ["-1", "x", "99999"])
def test_a_header_that_lies_is_refused(client: Client, length: str) -> None:
    got = client.post("/v2/models/weight/infer", {"inputs": tensors()}, {"Inference-Header-Content-Length": length})
    assert got.status == 400


def test_one_matrix_for_numbers_only_and_labels_with_probabilities(tmp_path: Path) -> None:
    from sklearn.linear_model import SGDClassifier

    app = hr.App("iris", log=tmp_path / "iris.headrace")
    flowers = app.topic("measured", append=True)
    classes = ["setosa", "virginica"]
    model = app.model(
        "iris", SGDClassifier(loss="log_loss", random_state=0), features=["x", "y"], target="label", classes=classes
    )
    model.learn(flowers)
    rows = [{"x": float(i % 2), "y": float(i), "label": classes[i % 2]} for i in range(40)]
    with serving(app, rows) as (running, client):
        about = client.get("/v2/models/iris").json
        assert about["outputs"][1] == {"name": "probability", "datatype": "FP64", "shape": [-1, 2]}
        matrix = [[0.0, 4.0], [1.0, 5.0], [1.0, 7.0]]
        whole = {"name": "anything", "shape": [3, 2], "datatype": "FP32", "data": matrix}
        outputs = [{"name": "prediction"}, {"name": "probability"}]
        got = client.post("/v2/models/iris/infer", {"inputs": [whole], "outputs": outputs})
        assert got.status == 200, got.body
        labels, chances = got.json["outputs"]
        assert labels["data"] == running["iris"].predict(np.array(matrix)).tolist()
        assert (labels["datatype"], chances["shape"]) == ("BYTES", [3, 2])
        assert np.reshape(chances["data"], (3, 2)).sum(axis=1) == pytest.approx([1, 1, 1])
        binary = client.post("/v2/models/iris/infer", {"inputs": [whole], "parameters": {"binary_data_output": True}})
        size = int(binary.headers["inference-header-content-length"])
        assert binary.body[size + 4 : size + 10] == labels["data"][0].encode()[:6]
        # No rows are answered with no rows, whatever is asked of them.
        for none in ([{**whole, "shape": [0, 2], "data": []}], tensors({"x": [], "y": []})):
            for asked in (outputs, outputs[:1], outputs[1:], [{**outputs[1], "parameters": {"binary_data": True}}]):
                for path in ("/v2/models/iris/infer", "/v2/models/iris/versions/1/infer"):
                    got = client.post(path, {"inputs": none, "outputs": asked})
                    assert got.status == 200, got.body
                    found = json.loads(got.body[: int(got.headers.get("inference-header-content-length", 10**9))])
                    shapes = {"prediction": [0], "probability": [0, 2]}
                    assert [output["shape"] for output in found["outputs"]] == [shapes[row["name"]] for row in asked]


def test_versions_that_ended_answer_as_they_did(tmp_path: Path) -> None:
    app = hr.App("fish", log=tmp_path / "fish.headrace")
    features = ["Length", "Height", hr.category("Species")]
    model = app.model("weight", hr.LinearRegression(), features=features, target="Weight", versions=2)
    model.learn(app.topic("measured", append=True)).serve()
    answers: dict[str, list[float]] = {}
    with serving(app) as (running, client):
        for row in FISH:
            running.append("measured", [row])
            made = running["weight"]
            answers[str(made.version)] = made.predict(ROWS).tolist() if made.learned % 2 == 0 else []
            if made.learned % 2 == 0:
                # A version ends with its last row; that state is what it answers with from then on.
                answers[str(made.version - 1)] = made.predict(ROWS).tolist()
        versions = client.get("/v2/models/weight").json["versions"]
        assert versions == ["1", "2", "3", "4"]
        for version in versions[:3]:
            got = client.post(f"/v2/models/weight/versions/{version}/infer", {"inputs": tensors()})
            assert got.json["model_version"] == version
            assert got.json["outputs"][0]["data"] == answers[version]
        current = client.post("/v2/models/weight/versions/4/infer", {"inputs": tensors()})
        assert current.json["outputs"][0]["data"] == running["weight"].predict(ROWS).tolist()
        missing = client.post("/v2/models/weight/versions/9/infer", {"inputs": tensors()})
        assert (missing.status, "no version «9»" in missing.json["error"]) == (404, True)
        assert client.get("/v2/models/weight/versions/2/ready").json["ready"]


def test_lists_and_bytes_are_tensors_too(tmp_path: Path) -> None:
    app = hr.App("digits", log=tmp_path / "digits.headrace")
    pictures = app.topic("measured", append=True)
    model = app.model(
        "digits",
        hr.KMeans(k=2, initial_centers=[[0.0] * 6, [9.0] * 6]),
        features=[hr.image("pixels", shape=(2, 2)), hr.vector("more", size=2)],
    )
    model.learn(pictures)
    rows = [{"pixels": bytes([i] * 4), "more": [float(i), i + 1.0]} for i in (0, 1, 8, 9)]
    with serving(app, rows) as (running, client):
        assert [tensor["datatype"] for tensor in client.get("/v2/models/digits").json["inputs"]] == ["BYTES", "FP32"]
        inputs = [
            {"name": "pixels", "datatype": "UINT8", "shape": [2, 2, 2], "data": [0, 0, 0, 1, 9, 9, 9, 8]},
            {"name": "more", "datatype": "FP32", "shape": [2, 2], "data": [[0, 1], [9, 8]]},
        ]
        got = client.post("/v2/models/digits/infer", {"inputs": inputs})
        assert got.status == 200, got.body
        asked = [
            {"pixels": bytes([0, 0, 0, 1]), "more": [0.0, 1.0]},
            {"pixels": bytes([9, 9, 9, 8]), "more": [9.0, 8.0]},
        ]
        assert got.json["outputs"][0]["data"] == running["digits"].predict(asked).tolist()


# -- Arrow ------------------------------------------------------------------------------------------------------------

STREAM = {"Content-Type": "application/vnd.apache.arrow.stream"}


def stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]  # pyarrow is untyped


def test_a_batch_as_arrow(client: Client, expected: list[float]) -> None:
    rows = pa.RecordBatch.from_pylist([{**ROWS[i % 2], "id": i} for i in range(1000)])
    got = client.post("/models/weight/predict", stream(rows), STREAM)
    assert (got.status, got.headers["content-type"]) == (200, STREAM["Content-Type"])
    found = pa.ipc.open_stream(got.body).read_all()
    assert found.column("prediction").to_pylist() == expected * 500
    assert found.column("id").to_pylist() == list(range(1000))
    assert set(found.column("model_position").to_pylist()) == {got.headers["headrace-position"]}


def test_rows_without_an_answer_say_why(client: Client) -> None:
    rows = pa.RecordBatch.from_pylist([ROWS[0], {**ROWS[0], "Species": "pike"}, {**ROWS[0], "Length": None}])
    found = pa.ipc.open_stream(client.post("/models/weight/predict", stream(rows), STREAM).body).read_all()
    assert found.column("status").to_pylist() == ["ok", "invalid", "invalid"]
    assert found.column("reason").to_pylist() == [
        None,
        "the category «Species» is 'pike', which is not known",
        "the feature «Length» is NULL",
    ]


def test_no_rows_have_the_columns_of_answers(client: Client) -> None:
    rows = pa.RecordBatch.from_pylist(ROWS).slice(0, 0)
    found = pa.ipc.open_stream(client.post("/models/weight/predict", stream(rows), STREAM).body).read_all()
    assert found.num_rows == 0
    assert found.schema.names[-5:] == ["prediction", "status", "model", "model_version", "model_position"]


@pytest.mark.parametrize(
    ("body", "headers", "query", "status"),
    [
        (b"", STREAM, {}, 422),
        (b"nonsense that is long enough to look like one", STREAM, {}, 422),
        (stream(pa.RecordBatch.from_pylist(ROWS))[:-300], STREAM, {}, 422),
        (b"{}", {"Content-Type": "application/json"}, {}, 415),
        (stream(pa.RecordBatch.from_pylist([{"__op": 1}])), STREAM, {}, 422),
        (stream(pa.RecordBatch.from_pylist(ROWS)), STREAM, {"version": "9"}, 404),
        (stream(pa.RecordBatch.from_pylist(ROWS)), STREAM, {"probabilities": "true"}, 422),
    ],
    ids=["empty", "nonsense", "torn", "json", "our column", "no version", "no probabilities"],
)
def test_wrong_batches_are_refused(
    client: Client, body: bytes, headers: dict[str, str], query: dict[str, str], status: int
) -> None:
    assert client.post("/models/weight/predict", body, headers, **query).status == status


def test_at_least_in_a_request_of_the_protocol(client: Client) -> None:
    late = client.post(
        "/v2/models/weight/infer", {"inputs": tensors(), "parameters": {"at_least": "measured:99", "deadline": 0.05}}
    )
    assert late.status == 504
    assert "has not learned up to there" in late.json["error"]
    got = client.post("/v2/models/weight/infer", {"inputs": tensors()}, at_least="measured:5")
    assert got.status == 200


def test_the_models_are_listed(client: Client) -> None:
    (one,) = wait_until(lambda: client.get("/models").json["models"])
    assert (one["model"], one["version"], one["ready"]) == ("weight", 1, True)
