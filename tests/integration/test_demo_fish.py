"""The fish demo as a user runs it, compared with a simulation that shares no code with it."""

from __future__ import annotations

import csv
import fcntl
import itertools
import json
import os
import pty
import random
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.demos.fish import pipeline
from headrace.demos.fish.events import read_data
from headrace.errors import DeclarationError
from headrace.log import open_log
from headrace.testing.servers import KafkaBroker
from tests.databases import Database
from tests.processes import HEADRACE, Child, headrace

pytestmark = pytest.mark.timeout(300)
SHIPPED = Path(pipeline.__file__).parent / "data"
KEYS = ["rows", "alarms", "versions", "mean_error", "log", "seconds"]
ROW_KEYS = ["Fish_Id", "Species", "PredictedWeight", "ActualWeight", "Error", "model_version"]
ALARM_KEYS = ["window_start", "window_end", "ErrorAvg", "Fish_Id_Start", "Fish_Id_End", "Species"]
TOPICS = {
    "machine-measurement": 180,
    "machine-weight": 180,
    "weight-prediction": 180,
    "weight-diff": 180,
    "weight-error": 6,
    "weight-retrain": 1,
    "weight-training": 1,
}
FILES = ("training.csv", "measurement.jsonl", "weight.jsonl")
CAME = ["salmon", "walleye", "bream"]
Result = dict[str, Any]


def result(*arguments: str, cwd: Path) -> Result:
    """What the demo says in JSON, checked for what is true of every run."""
    out = headrace("demo", "fish", "--json", *arguments, cwd=cwd)
    assert len(out.splitlines()) == 1
    found: Result = json.loads(out)
    assert list(found) == ([*KEYS[:4], "online", *KEYS[4:]] if "--online" in arguments else KEYS)
    assert all(list(row) == ROW_KEYS for row in found["rows"])
    assert all(list(row) == ALARM_KEYS for row in found["alarms"])
    return found


def told(found: Result) -> Result:
    """Of a result, what does not depend on where and how fast it ran."""
    return {key: found[key] for key in KEYS[:4]}


# -- a simulation of the seed: least squares by NumPy, windows and alarms by hand --------------------------------------


def design(rows: list[Result], words: list[str]) -> Any:
    """R's treatment coding; a species that is not among the words is taken for the one of them that came last."""
    last = max(words, key=CAME.index)
    kinds = [row["Species"] if row["Species"] in words else last for row in rows]
    measures = zip(rows, kinds, strict=True)
    return np.array([[1.0, r["Length"], r["Height"], *(float(kind == w) for w in words[1:])] for r, kind in measures])


def fit(rows: list[Result]) -> tuple[list[str], Any]:
    words = sorted({row["Species"] for row in rows})
    weights = np.array([row["Weight"] for row in rows])
    return words, np.linalg.lstsq(design(rows, words), weights, rcond=None)[0]


def simulated(folder: Path) -> Result:
    """What a run on a directory of files must say."""
    with (folder / "training.csv").open() as file:
        numbers = ("length", "height", "weight")
        first = [
            {"Species": r["species"], **{n.capitalize(): float(r[n]) for n in numbers}} for r in csv.DictReader(file)
        ]
    measured, weighed = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("measurement", "weight")
    )
    events = sorted(
        [(seconds(row, 2 * i), 0, row) for i, row in enumerate(measured)]
        + [(seconds(row, 2 * i + 10), 1, row) for i, row in enumerate(weighed)],
        key=lambda one: one[:2],
    )
    model, version = fit(first), 1
    predicted: dict[str, Result] = {}
    graded: list[Result] = []
    alarms: list[Result] = []
    versions: list[Result] = []
    quiet_until = window = -1
    for at, side, row in events:
        if side == 0:
            prediction = float((design([row], model[0]) @ model[1])[0])
            predicted[row["Fish_Id"]] = {**row, "prediction": prediction, "version": version}
            continue
        one = predicted[row["Fish_Id"]] | {"Weight": row["Weight"], "minute": int(at // 60)}
        one["error"] = abs(one["prediction"] - one["Weight"]) / one["Weight"]
        graded.append(one)
        if one["minute"] > window >= 0:
            over = [other for other in graded if other["minute"] == window]
            mean = sum(other["error"] for other in over) / len(over)
            if mean > 0.15 and window > quiet_until:
                alarms.append(alarm(window, mean, over))
                quiet_until, version, rows = window + 1, version + 1, graded[-50:]
                model = fit(rows)
                names = ["(Intercept)", "Length", "Height", *(f"Species{word}" for word in model[0][1:])]
                coefficients = dict(zip(names, model[1].tolist(), strict=True))
                versions.append({"version": version, "rows": len(rows), "species": model[0]})
                versions[-1]["coefficients"] = pytest.approx(coefficients, rel=1e-7)
        window = one["minute"]
    return {
        "rows": [simulated_row(item) for item in graded],
        "alarms": alarms,
        "versions": versions,
        "mean_error": {key: value and pytest.approx(value) for key, value in simulated_means(graded).items()},
    }


def seconds(row: Result, otherwise: float) -> float:
    if "Timestamp" not in row:
        return otherwise
    when = datetime.fromisoformat(row["Timestamp"])
    return (when.replace(tzinfo=when.tzinfo or UTC) - datetime(2021, 6, 10, tzinfo=UTC)).total_seconds()


def alarm(minute: int, mean: float, rows: list[Result]) -> Result:
    start = datetime(2021, 6, 10) + timedelta(minutes=minute)
    return {
        "window_start": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "window_end": f"{start + timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}",
        "ErrorAvg": pytest.approx(mean),
        "Fish_Id_Start": rows[0]["Fish_Id"],
        "Fish_Id_End": rows[-1]["Fish_Id"],
        "Species": list(dict.fromkeys(row["Species"] for row in rows)),
    }


def simulated_row(one: Result) -> Result:
    return {
        "Fish_Id": one["Fish_Id"],
        "Species": one["Species"],
        "PredictedWeight": pytest.approx(one["prediction"], rel=1e-9),
        "ActualWeight": one["Weight"],
        "Error": pytest.approx(one["error"], abs=1e-9),
        "model_version": one["version"],
    }


def simulated_means(graded: list[Result]) -> dict[str, float | None]:
    species = list(dict.fromkeys(row["Species"] for row in graded))

    def mean(name: str, chosen: Callable[[int], bool]) -> float | None:
        errors = [row["error"] for row in graded if row["Species"] == name and chosen(row["version"])]
        return float(np.mean(errors)) if errors else None

    before = {f"{name}_before": mean(name, lambda version: version == 1) for name in species}
    return before | {f"{name}_after": mean(name, lambda version: version > 1) for name in reversed(species)}


# -- the shipped events ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run on the shipped events, from topics."""
    return result("--log", "fish.headrace", cwd=tmp_path_factory.mktemp("shipped"))


def test_the_shipped_files_are_the_shared_ones(shared_data: Path) -> None:
    for name in FILES:
        assert (SHIPPED / name).read_bytes() == (shared_data / "fish" / name).read_bytes()


def test_the_seeds_course_of_events(shipped: Result) -> None:
    assert len(shipped["rows"]) == 180
    (one,) = shipped["alarms"]
    assert (one["window_start"], one["window_end"]) == ("2021-06-10T00:02:00Z", "2021-06-10T00:03:00Z")
    assert (one["Fish_Id_Start"], one["Fish_Id_End"], one["Species"]) == ("56", "85", ["salmon", "walleye"])
    assert round(one["ErrorAvg"], 3) == 0.702
    (version,) = shipped["versions"]
    assert (version["version"], version["rows"], version["species"]) == (2, 50, ["salmon", "walleye"])
    assert list(version["coefficients"]) == ["(Intercept)", "Length", "Height", "Specieswalleye"]
    rounded = {name: float(f"{value:.3g}") for name, value in shipped["mean_error"].items()}
    assert list(rounded.items()) == [
        ("salmon_before", 0.0196),
        ("walleye_before", 0.843),
        ("walleye_after", 0.0413),
        ("salmon_after", 0.0248),
    ]


def test_fish_by_fish_it_is_what_numpy_says(shipped: Result) -> None:
    assert told(shipped) == simulated(SHIPPED)


def test_the_log_holds_every_message_once_and_the_picture_lies_beside_it(shipped: Result) -> None:
    assert counts(Path(shipped["log"])) == TOPICS
    assert (Path(shipped["log"]).parent / "fish.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def counts(log: Path) -> dict[str, int]:
    if not log.exists():
        return {}
    held = open_log(str(log), writer=False)
    try:
        return {name: info.rows for name, info in held.topics().items() if not name.startswith("__")}
    finally:
        held.close()


def test_from_tables_the_same(shipped: Result, tmp_path: Path) -> None:
    assert told(result("--source", "postgres", cwd=tmp_path)) == told(shipped)


def test_a_server_that_is_there_is_left_as_it_was(database: Database, shipped: Result, tmp_path: Path) -> None:
    options = ["--source", "postgres", "--postgres", database.dsn, "--log", "fish.headrace"]
    assert told(result(*options, cwd=tmp_path)) == told(shipped)
    assert database.execute("select count(*) from machine_weight") == [(180,)]
    assert database.execute("select slot_name from pg_replication_slots where database = current_database()") == []
    assert database.execute("select pubname from pg_publication") == []
    assert "there already" in headrace("demo", "fish", "--json", *options, cwd=tmp_path, code=2)


@pytest.mark.slow
def test_on_kafka_the_same(broker: KafkaBroker, shipped: Result, tmp_path: Path) -> None:
    options = ["--log", f"kafka://{broker.bootstrap}/fish-demo", "--png", "."]
    found = result(*options, cwd=tmp_path)
    assert told(found) == told(shipped)
    assert told(result(*options, cwd=tmp_path)) == told(shipped)


@pytest.mark.slow
def test_online_a_second_model_learns_every_fish(shipped: Result, tmp_path: Path) -> None:
    found = result("--online", "--png", "pictures", cwd=tmp_path)
    assert told(found) == told(shipped)
    online = found["online"]
    assert [row["Fish_Id"] for row in online["rows"]] == [row["Fish_Id"] for row in found["rows"]]
    assert {row["model_version"] for row in online["rows"]} == {1}
    # Fish i is predicted when fish i - 6 has been weighed and learned: what NumPy makes of exactly those.
    with (SHIPPED / "training.csv").open() as file:
        numbers = ("length", "height", "weight")
        known = [
            {"Species": r["species"], **{n.capitalize(): float(r[n]) for n in numbers}} for r in csv.DictReader(file)
        ]
    measured = [json.loads(line) for line in (SHIPPED / "measurement.jsonl").read_text().splitlines()]
    weights = [json.loads(line)["Weight"] for line in (SHIPPED / "weight.jsonl").read_text().splitlines()]
    for i in (0, 5, 6, 70, 100, 179):
        words, coefficients = fit([*known, *({**measured[j], "Weight": weights[j]} for j in range(max(0, i - 5)))])
        expected = float((design([measured[i]], words) @ coefficients)[0])
        assert online["rows"][i]["PredictedWeight"] == pytest.approx(expected, rel=1e-9), i
    assert online["mean_error"]["walleye_before"] < found["mean_error"]["walleye_before"] / 3
    assert (tmp_path / "pictures" / "fish.png").stat().st_size > 10_000


# -- other events ------------------------------------------------------------------------------------------------------


def other_data(folder: Path, seed: int) -> Path:
    """Other fish at times of their own, in files that are in no order; a third species comes at the end."""
    chance = random.Random(seed)
    salmon, walleye = ([item for item in shipped_fish() if item["Species"] == name] for name in ("salmon", "walleye"))
    bream = [{**item, "Species": "bream", "Weight": 9 * item["Weight"]} for item in walleye]
    fish = [*salmon[:60], *walleye[:55], *itertools.chain(*zip(bream[:50], salmon[60:110], strict=True))]
    measured, weighed, at = [], [], 7.3
    for i, item in enumerate(fish):
        at += chance.uniform(0.5, 3.0)
        fish_id = f"{'abc'[i % 3]}-{i}"
        measured.append({**{n: item[n] for n in ("Species", "Length", "Height")}, "Fish_Id": fish_id, **stamp(at)})
        later = stamp(at + chance.uniform(8, 12))
        weighed.append({"Species": item["Species"], "Weight": item["Weight"], "Fish_Id": fish_id, **later})
    for name, rows in (("measurement", measured), ("weight", weighed)):
        chance.shuffle(rows)
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "training.csv").write_bytes((SHIPPED / "training.csv").read_bytes())
    return folder


def shipped_fish() -> list[Result]:
    lines = [(SHIPPED / f"{name}.jsonl").read_text().splitlines() for name in ("measurement", "weight")]
    return [json.loads(a) | json.loads(b) for a, b in zip(*lines, strict=True)]


def stamp(at: float) -> dict[str, str]:
    """As different programs write times: with a zone, with another, or none."""
    when = datetime(2021, 6, 10, tzinfo=UTC) + timedelta(milliseconds=round(at * 1000))
    texts = (
        when.isoformat().replace("+00:00", "Z"),
        (when + timedelta(hours=2)).replace(tzinfo=None).isoformat() + "+02:00",
        when.replace(tzinfo=None).isoformat(sep=" ", timespec="milliseconds"),
    )
    return {"Timestamp": texts[round(at * 1000) % 3]}


@pytest.mark.parametrize("source", ["topics", "postgres"])
def test_other_events_are_sent_in_the_order_of_their_own_times(source: str, tmp_path: Path) -> None:
    folder = other_data(tmp_path, seed=3)
    expected = simulated(folder)
    found = result("--data", ".", "--source", source, "--log", "fish.headrace", cwd=tmp_path)
    assert len(found["rows"]) == 215
    assert len(found["versions"]) >= 2
    assert {**told(found), "rows": sorted(found["rows"], key=fish_id)} == {
        **expected,
        "rows": sorted(expected["rows"], key=fish_id),
    }


def fish_id(row: Result) -> str:
    return str(row["Fish_Id"])


def test_numbers_of_fish_stay_numbers(tmp_path: Path) -> None:
    write(tmp_path, [(7, 1), (8, 2)], [(8, 1.5), (7, 1.25)])
    found = result("--data", ".", "--log", "fish.headrace", cwd=tmp_path)
    assert [(row["Fish_Id"], row["ActualWeight"]) for row in found["rows"]] == [(7, 1.25), (8, 1.5)]
    assert found["mean_error"]["salmon_after"] is None
    times = [json.loads(line)["Timestamp"] for line in cat("machine-weight", tmp_path)]
    assert times == ["2021-06-10T00:00:10Z", "2021-06-10T00:00:12Z"]


def test_a_fish_weighed_again_counts_once_and_others_wait(tmp_path: Path) -> None:
    write(tmp_path, [("a", 18), ("b", 19)], [("a", 4.5), ("a", 5.5), ("a", 5.5), ("c", 4)])
    found = result("--data", ".", "--log", "fish.headrace", cwd=tmp_path)
    assert [(row["Fish_Id"], row["ActualWeight"]) for row in found["rows"]] == [("a", 5.5)]
    assert (found["alarms"], found["versions"]) == ([], [])
    lines = [json.loads(line) for line in cat("weight-diff", tmp_path)]
    assert [(line["status"], line["Weight"]) for line in lines] == [
        ("graded", 4.5),
        ("corrected", 5.5),
        ("orphan", 5.5),
    ]


def cat(topic: str, folder: Path) -> list[str]:
    return headrace("topics", "cat", topic, "--log", "fish.headrace", cwd=folder).splitlines()


def write(folder: Path, measured: list[Any], weighed: list[Any]) -> None:
    """Files of a few salmon: (id, height) and (id, weight)."""
    one = {"Species": "salmon", "Length": 80}
    rows = {
        "measurement": [{"Fish_Id": i, "Height": height, **one} for i, height in measured],
        "weight": [{"Fish_Id": i, "Weight": weight, "Species": "salmon"} for i, weight in weighed],
    }
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found))
    (folder / "training.csv").write_bytes((SHIPPED / "training.csv").read_bytes())


MEASURED = '{"Species": "salmon", "Fish_Id": "1", "Length": 86.4, "Height": 18.7}'
WEIGHED = '{"Species": "salmon", "Fish_Id": "1", "Weight": 4.4}'
TRAINED = "species,length,height,weight\nsalmon,88.4,19.4,4.7\n"
WRONG: dict[str, tuple[dict[str, str | None], str]] = {
    "no training": ({"training.csv": None}, "training.csv» cannot be read"),
    "no measurements": ({"measurement.jsonl": None}, "measurement.jsonl cannot be read"),
    "no weights": ({"weight.jsonl": None}, "weight.jsonl cannot be read"),
    "empty": ({"weight.jsonl": "\n"}, "weight.jsonl has no rows"),
    "training without height": ({"training.csv": "species,length,weight\na,1,2\n"}, "has no column height"),
    "training with words": ({"training.csv": TRAINED + "a,b,1,2\n"}, "length is not a number in every row"),
    "training without rows": ({"training.csv": "species,length,height,weight\n"}, "training.csv"),
    "no JSON": ({"weight.jsonl": WEIGHED + "\n{"}, "weight.jsonl, line 2: no JSON"),
    "no object": ({"weight.jsonl": "[1]"}, "weight.jsonl, line 1: no JSON object"),
    "no length": ({"measurement.jsonl": MEASURED.replace("Length", "Len")}, "line 1: there is no Length"),
    "a word": ({"measurement.jsonl": MEASURED.replace("86.4", '"long"')}, "line 1: Length is 'long', no number"),
    "no weight": ({"weight.jsonl": WEIGHED.replace("4.4", "null")}, "line 1: there is no Weight"),
    "weightless": ({"weight.jsonl": WEIGHED.replace("4.4", "0")}, "line 1: a Weight of 0"),
    "no species": ({"weight.jsonl": WEIGHED.replace('"salmon"', "3")}, "Species is 3"),
    "some times": (
        {"weight.jsonl": WEIGHED[:-1] + ', "Timestamp": "2021-06-10T00:00:00Z"}'},
        "measurement.jsonl: 1 of 1 rows have no Timestamp",
    ),
    "no times": (
        {
            "weight.jsonl": WEIGHED[:-1] + ', "Timestamp": "soon"}',
            "measurement.jsonl": MEASURED[:-1] + ', "Timestamp": "2021-06-10T00:00:00Z"}',
        },
        "weight.jsonl, row 1: the time «Timestamp» is 'soon'",
    ),
    "several types": (
        {"weight.jsonl": WEIGHED + "\n" + WEIGHED.replace('"1"', "1")},
        "weight.jsonl: a column of several types",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_files_are_refused_with_the_place(wrong: str, tmp_path: Path) -> None:
    files, words = WRONG[wrong]
    there = {"training.csv": TRAINED, "measurement.jsonl": MEASURED, "weight.jsonl": WEIGHED, **files}
    for name, text in there.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(DeclarationError) as error:
        read_data(tmp_path)
    assert words in str(error.value)


REFUSED = {
    "data": (["--data", "nowhere"], "nowhere/training.csv» cannot be read"),
    "speeds": (["--speed", "5", "--realtime"], "--realtime is --speed 1"),
    "backwards": (["--speed", "-1"], "greater than or equal to 0"),
    "postgres": (["--postgres", "x"], "--postgres is for --source postgres"),
    "source": (["--source", "mongo"], "mongo"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_wrong_options_are_refused_before_anything_runs(refused: str, tmp_path: Path) -> None:
    arguments, words = REFUSED[refused]
    said = headrace("demo", "fish", *arguments, cwd=tmp_path, code=2)
    assert words in " ".join(said.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


# -- killed, stopped, started again ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_started_again_it_is_as_if_it_had_never_been_killed(shipped: Result, tmp_path: Path) -> None:
    log = tmp_path / "killed.headrace"
    for rows in (40, 87, 130):
        child = started(["--speed", "150"], log)
        try:
            wait_for(rows, log, child)
        finally:
            child.kill()
            child.communicate(timeout=30)
        assert counts(log)["weight-diff"] < 180, "it was killed too late"
    assert told(result("--log", str(log), cwd=tmp_path)) == told(shipped)
    assert counts(log) == TOPICS
    # All is done: another run says the same, and sends nothing.
    assert told(result("--log", str(log), cwd=tmp_path)) == told(shipped)
    assert counts(log) == TOPICS


def started(options: list[str], log: Path) -> subprocess.Popen[str]:
    command = [HEADRACE, "demo", "fish", "--json", "--log", str(log), *options]
    return Child(command, cwd=log.parent, stdout=subprocess.PIPE, text=True)


def wait_for(rows: int, log: Path, child: subprocess.Popen[str]) -> None:
    """Until so many fish are graded."""
    deadline = time.monotonic() + 120
    while counts(log).get("weight-diff", 0) < rows:
        assert child.poll() is None, "it has ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopped_it_ends_cleanly_and_goes_on_later(name: str, shipped: Result, tmp_path: Path) -> None:
    log = tmp_path / "stopped.headrace"
    child = started(["--speed", "100"], log)
    try:
        wait_for(30, log, child)
        child.send_signal(getattr(signal, name))
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 128 + getattr(signal, name)
    if out or name == "SIGTERM":  # on a busy machine Ctrl-C may have no time for a last word
        first = json.loads(out)
        assert 30 <= len(first["rows"]) < 180
        assert first["rows"] == shipped["rows"][: len(first["rows"])]
        assert list(first["mean_error"]) == list(shipped["mean_error"])
    assert told(result("--log", str(log), cwd=tmp_path)) == told(shipped)


def test_other_files_do_not_go_on_with_a_log(tmp_path: Path) -> None:
    write(tmp_path, [("1", 18), ("2", 19)], [("1", 4.4), ("2", 4.5)])
    options = ["--data", ".", "--log", "fish.headrace"]
    result(*options, cwd=tmp_path)
    write(tmp_path, [("1", 18), ("2", 19.5)], [("1", 4.4), ("2", 4.5)])
    said = headrace("demo", "fish", "--json", *options, cwd=tmp_path, code=1)
    assert "is not the one that was written" in said
    write(tmp_path, [("1", 18), ("2", 19)], [("1", 4.4), ("2", 4.5)])
    (tmp_path / "training.csv").write_text(TRAINED + "salmon,1,2,3\nsalmon,2,1,5\n")
    assert "initial" in headrace("demo", "fish", "--json", *options, cwd=tmp_path, code=2)


# -- what people see ---------------------------------------------------------------------------------------------------


def test_people_see_windows_the_alarm_the_retraining_and_the_picture(tmp_path: Path) -> None:
    out = headrace("demo", "fish", "--log", "fish.headrace", cwd=tmp_path)
    lines = out.splitlines()
    seen = [
        "00:01 to 00:02: 30 fish, mean error 0.018",
        "00:02 to 00:03: 30 fish, mean error 0.702",
        "ALARM 00:02 to 00:03: mean error 0.702 is above 0.15, fish 56 to 85, salmon and walleye",
        "RETRAINED on the last 50 rows: version 2 from here on",
        "00:05 to 00:06: 30 fish, mean error 0.025",
    ]
    assert [line for line in lines if line in seen] == seen
    for text in ("trigger period: fish 56 to 85", "retraining data: fish 37 to 86", "new model: fish 92 to 180"):
        assert text in out
    assert sum(line.count("●") for line in lines if "┤" in line) == 60  # three fish a column
    assert "180 fish graded, 1 alarm" in out
    assert f"Picture: {tmp_path / 'fish.png'}" in out
    assert f"The log stays at {tmp_path / 'fish.headrace'}" in out


@pytest.mark.slow
def test_in_a_terminal_it_is_drawn_anew_while_six_minutes_run(tmp_path: Path) -> None:
    begun = time.monotonic()
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.environ.update(TERM="xterm-256color")
        os.execv(HEADRACE, [HEADRACE, "demo", "fish", "--online", "--log", "fish.headrace"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 45, 110, 0, 0))
    out = b""
    try:
        while part := os.read(terminal, 65_536):
            out += part
    except OSError:  # the other end is closed
        pass
    finally:
        _, status = os.waitpid(child, 0)
        os.close(terminal)
    assert status == 0
    assert time.monotonic() - begun >= 368 / 60
    text = out.decode()
    for words in ("at 60 times the time", "weight-diff", "learned online", "ALARM", "RETRAINED", "version 2, made at"):
        assert words in text
    assert text.index("version 1, made at") < text.index("version 2, made at")
    assert text.count("weighed ten seconds later") > 10


def test_a_speed_is_kept(tmp_path: Path) -> None:
    write(tmp_path, [(i, 18) for i in range(4)], [(i, 4.4) for i in range(4)])
    found = result("--data", ".", "--speed", "8", cwd=tmp_path)
    assert found["seconds"] >= 16 / 8
