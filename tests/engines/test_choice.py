"""The choice of an engine: what options choose, what is refused and how, and that nothing is imported before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app as cli
from headrace.engines.limits import LIMITS, REQUESTS, check_limits, limits_table
from headrace.engines.settings import ENGINES, FlinkEngine, LocalEngine, RunSettings, SparkEngine, engine_settings
from headrace.errors import DeclarationError, HeadraceError, MissingExtra

KAFKA = "kafka://127.0.0.1:1"  # nobody is there: what is refused is refused before anybody is asked


def shop(log: str | Path = KAFKA) -> hr.App:
    """A small pipeline that reads a topic."""
    app = hr.App("shop", log=log)
    model = app.model("m", hr.KMeans(k=2, seed=1), features=["x"])
    model.learn(app.topic("orders"), every=8)
    model.predict(app.topic("orders")).to("predictions")
    return app


def test_options_choose_an_engine() -> None:
    assert engine_settings() == LocalEngine()
    assert engine_settings("spark", master="spark://a:7077,b:7077") == SparkEngine("spark://a:7077,b:7077")
    assert engine_settings("spark", conf={"spark.executor.memory": "2g"}).conf == {"spark.executor.memory": "2g"}  # type: ignore[union-attr]  # it is Spark's
    assert engine_settings("flink", jobmanager="[::1]:8081") == FlinkEngine("[::1]:8081")
    assert engine_settings("flink") == FlinkEngine(None)


@pytest.mark.parametrize(
    "master", ["local", "local[2]", "local[*]", "local[2,8]", "spark://h:1", "yarn", "k8s://https://h:1"]
)
def test_masters_of_spark(master: str) -> None:
    assert engine_settings("spark", master=master) == SparkEngine(master)


@pytest.mark.parametrize(
    ("options", "message", "advice"),
    [
        ({"engine": "sprak"}, "there is no engine «sprak» (did you mean «spark»?)", "local, spark, flink"),
        ({"engine": ""}, "there is no engine «»", "local, spark, flink"),
        ({"master": "local[2]"}, 'engine="local" (did you mean engine="spark"?)', "master= belongs"),
        ({"engine": "flink", "master": "local[2]"}, 'engine="flink" (did you mean engine="spark"?)', "master= belongs"),
        ({"engine": "spark", "jobmanager": "h:1"}, '(did you mean engine="flink"?)', "jobmanager= belongs"),
        ({"engine": "spark", "master": "host:7077"}, "did you mean «spark://host:7077»?", "local[2]"),
        ({"engine": "spark", "master": ""}, "master='' is no master of Spark", "local[2]"),
        ({"engine": "spark", "master": "local[0]"}, "is no master of Spark", "local[2]"),
        ({"engine": "spark", "conf": {"executor.memory": "2g"}}, "no property of Spark", "spark.executor.memory"),
        ({"engine": "flink", "jobmanager": "http://host:8081/"}, "did you mean «host:8081»?", "host:8081"),
        ({"engine": "flink", "jobmanager": "host"}, "is no address", "host:8081"),
        ({"conf": {"spark.x": "1"}}, 'says nothing to engine="local"', 'engine="spark"'),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str, advice: str, tmp_path: Path) -> None:
    """By `start` and by `run`, before a log is made."""
    for app in (shop(), shop(tmp_path / "shop.headrace")):
        for call in (app.start, app.run):
            with pytest.raises(DeclarationError) as refused:
                call(**options)
            assert message in refused.value.message and advice in refused.value.advice
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["spark", "flink"])
def test_a_log_that_is_not_on_kafka_is_refused(engine: Any, tmp_path: Path) -> None:
    for log in (tmp_path / "shop.headrace", "memory://"):
        with pytest.raises(DeclarationError, match="needs a log on Kafka") as refused:
            shop(log).start(engine=engine)
        assert 'App("shop", log="kafka://host:9092")' in refused.value.advice
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("engine", "package"), [("spark", "pyspark"), ("flink", "pyflink")])
def test_a_missing_package_is_named(engine: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MissingExtra) as refused:
        shop().start(engine=engine)
    first = {"spark": "", "flink": "pip install 'apache-flink>=2.3,<2.4', and then "}[engine]
    assert refused.value.advice == f"{first}pip install 'headrace[{engine}]'"


def test_no_engine_is_imported_before_it_is_chosen(tmp_path: Path) -> None:
    """Not by running on another one either."""
    code = f"""
import sys, headrace as hr
app = hr.App("shop", log={str(tmp_path / "shop.headrace")!r})
topic = app.topic("t", append=True)
app.model("m", hr.KMeans(k=2, seed=1), features=["x"]).learn(topic, every=2)
with app.start() as running:
    running.append("t", [{{"x": 1.0}}, {{"x": 2.0}}])
others = ("pyspark", "pyflink", "headrace.engines.spark", "headrace.engines.flink")
strange = [name for name in sys.modules if name.startswith(others)]
assert not strange, strange
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A pipeline's file, in the directory that commands run in."""
    monkeypatch.chdir(tmp_path)
    Path("shop.py").write_text(
        "import headrace as hr\n"
        'app = hr.App("shop", log="kafka://127.0.0.1:1")\n'
        'app.model("m", hr.KMeans(k=2, seed=1), features=["x"]).learn(app.topic("t"), every=2)\n'
    )
    return "shop.py"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--master", "local[2]"], "did you mean engine="),
        (["--engine", "spark", "--jobmanager", "h:1"], "did you mean engine="),
        (["--engine", "flink", "--conf", "x"], "--conf x: this is not NAME=VALUE"),
        (["--engine", "flink", "--log", "shop.headrace"], "needs a log on Kafka"),
    ],
)
def test_what_the_command_line_refuses(file: str, options: list[str], message: str) -> None:
    with pytest.raises(HeadraceError, match=message.replace("(", r"\(")) as refused:
        CliRunner().invoke(cli, ["run", file, *options], catch_exceptions=False)
    assert refused.value.exit_code == 2


def test_an_unknown_engine_on_the_command_line(file: str) -> None:
    done = CliRunner().invoke(cli, ["run", file, "--engine", "sprak"])
    assert done.exit_code == 2 and all(name in done.output for name in ENGINES)


# -- what engines cannot do --------------------------------------------------------------------------------------------


def appending(app: hr.App) -> hr.App:
    app.topic("mine", append=True)
    return app


def captured(app: hr.App) -> hr.App:
    app.postgres("postgresql://localhost/shop", tables=r"public\.orders")
    return app


ASKING = {
    "capture PostgreSQL inside its job": lambda: (captured(shop()), {}),
    "append rows of the program's own": lambda: (appending(shop()), {}),
    "predict over HTTP in the same process": lambda: (shop(), {"serve": True}),
    "show the dashboard from the same process": lambda: (shop(), {"ui": True}),
    "serve metrics from the same process": lambda: (shop(), {"metrics": ("127.0.0.1", 0)}),
    "spread work over processes of this machine": lambda: (shop(), {"workers": 2}),
    REQUESTS.what: None,
}


def test_every_limit_is_refused_by_name() -> None:
    """Each line of the table, on each engine that it is about, and on no other; `local` can do all of it."""
    assert [limit.what for limit in LIMITS] == list(ASKING), "say in ASKING how a pipeline asks for it"
    for limit in LIMITS:
        asking = ASKING[limit.what]
        if asking is None:
            continue
        app, options = asking()
        for settings in (LocalEngine(), SparkEngine(), FlinkEngine()):
            run = RunSettings(settings, **options)
            if settings.name not in limit.engines:
                check_limits(app.plan(), run)
                continue
            with pytest.raises(DeclarationError) as refused:
                check_limits(app.plan(), run)
            assert refused.value.message.startswith(f'engine="{settings.name}" cannot {limit.what} yet (')
            assert limit.reason in refused.value.message
            assert refused.value.advice == f'{limit.instead} Or run it with engine="local".'


def test_what_is_asked_for_while_it_runs_is_refused_in_the_same_words() -> None:
    from headrace.engines.flink.running import FlinkRunning

    with pytest.raises(DeclarationError) as refused:
        FlinkRunning.tick(FlinkRunning.__new__(FlinkRunning), "m")
    assert str(refused.value) == str(REQUESTS.refusal("flink", ["«m»"]))


def test_the_table_for_people_has_every_limit() -> None:
    lines = limits_table().splitlines()
    assert lines[0].split(" | ")[1:3] == ["spark", "flink"]
    assert len(lines) == len(LIMITS) + 2
    for line, limit in zip(lines[2:], LIMITS, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert cells[0] == limit.what and cells[3:] == [limit.reason, limit.instead]
        assert [cell == "no" for cell in cells[1:3]] == [name in limit.engines for name in ("spark", "flink")]


def test_the_page_of_the_engines_has_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "engines.md"
    assert "\n<!-- generated: engine_limits -->\n" in page.read_text()
