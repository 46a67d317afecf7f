"""The Iris demo, live: rows are inserted into a real PostgreSQL, and the model is asked again after each insert.

The servers are those of `headrace.demos.iris.scene`; the rows come through Headrace's own capture, or through Debezium.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.csv
from psycopg import sql
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.demos.iris import pipeline
from headrace.demos.iris.scene import APP, TABLE_COLUMNS, Options, scene
from headrace.demos.screen import View, keep_page, print_kept, print_next, show_page
from headrace.demos.servers import Scene, clean_up, insertion
from headrace.engines.contract import RunningPipeline
from headrace.engines.local.running import Running
from headrace.errors import DeclarationError, HeadraceError, WaitTimeout
from headrace.pipeline.app import App

MEASURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
COLUMNS = (*MEASURES, "iris_class")
SPECIES = {0: "setosa", 1: "versicolor", 2: "virginica"}
WAIT_SECONDS = 300.0  # with the first rows, a job on a cluster is started
ROUNDS = (("train1", "train1"), ("train2", "train2"), ("train2_again", "train2"))


@dataclass(slots=True)
class Show(View):
    """The screen of the demo."""

    flavour: str = ""
    test: list[dict[str, Any]] = field(default_factory=list)
    captured: int = 0
    learned: int = 0
    model: str = ""
    page: str = ""
    rounds: list[tuple[str, list[int]]] = field(default_factory=list)

    def __rich__(self) -> RenderableType:
        lines = [self.line(), *([self.page] if self.page else [])]
        return Group(self.table(dict.fromkeys(range(3))), *(Text(line, style="dim") for line in lines))

    def line(self) -> str:
        """Figures in one line."""
        return f"{self.step} · {self.captured} rows captured · {self.learned} learned · {self.model}"

    def table(self, names: dict[int, int | None]) -> Table:
        """The growing table; ``names`` maps clusters to labels once they are known."""
        table = Table(title=f"Iris, as in {self.flavour}: predicted classes", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("test row", no_wrap=True)
        table.add_column("true class", no_wrap=True)
        for after, _ in self.rounds:
            table.add_column(after.replace("_", " "), no_wrap=True)
        for i, row in enumerate(self.test):
            label = row["iris_class"]
            measures = ", ".join(str(row[name]) for name in MEASURES)
            cells = [_verdict(clusters[i], names.get(clusters[i]), label) for _, clusters in self.rounds]
            table.add_row(f"[{measures}]".replace("[", r"\["), f"{label} {SPECIES.get(label, '')}".strip(), *cells)
        return table


def _verdict(cluster: int, label: int | None, truth: int) -> str:
    if label is None:
        return str(cluster)
    return f"[green]{label} ✓[/]" if label == truth else f"[red]{label} ✗[/]"


def play(options: Options, *, show: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Play the demo; returns its result as JSON values.

    Args:
        options: see `Options`.
        show: print what happens; else nothing is printed.
    """
    console = console or Console()
    started = time.monotonic()
    data = read_data(options.data)
    view = Show(console, show, flavour=options.flavour, test=data["test"])
    with contextlib.ExitStack() as stack:
        with view.drawing():
            found = stack.enter_context(scene(options, view.say))
            rounds, page = _rounds(options, found, data, view, stack)
        view.step = "done"
        result = _result(options, data, rounds, found.log) | {"seconds": round(time.monotonic() - started, 3)}
        if show:
            _print_end(console, view, match_clusters(rounds[-1][1], _labels(data)), result, found)
            keep_page(options, page, console)
    if options.keep:
        print_kept(found)
    return result


def _labels(data: dict[str, list[dict[str, Any]]]) -> list[int]:
    return [int(row["iris_class"]) for row in data["test"]]


def _result(
    options: Options, data: dict[str, list[dict[str, Any]]], rounds: list[tuple[str, list[int]]], log: str
) -> dict[str, Any]:
    labels = _labels(data)
    names = match_clusters(rounds[-1][1], labels)
    found = [
        {"after": after, "predictions": clusters, "labels": labels, "correct": _correct(clusters, labels, names)}
        for after, clusters in rounds
    ]
    return {"flavour": options.flavour, "rounds": found, "log": log}


def _rounds(
    options: Options,
    found: Scene,
    data: dict[str, list[dict[str, Any]]],
    view: Show,
    until: contextlib.ExitStack,
) -> tuple[list[tuple[str, list[int]]], str]:
    """Return what was predicted after each round, and the dashboard's address; the pipeline runs until a stack ends."""
    app = _app(options, found)
    database = until.enter_context(psycopg.connect(found.dsn, autocommit=True))
    if options.postgres is not None and options.source == "postgres":
        until.callback(clean_up, database, APP)
    running = until.enter_context(_started(app, options, found, view))
    for after, train in ROUNDS:
        view.say(f"inserting {train}: {len(data[train])} rows to learn")
        _insert(database, "iris_train", data[train])
        _wait(running, options, database, "iris_train")
        if options.flavour == "spark":
            _micro_batches(app, options)
        _figures(view, running)
        time.sleep(options.pause)
        view.say(f"inserting test: {len(data['test'])} rows to classify")
        _insert(database, "iris_test", data["test"])
        _wait(running, options, database, "iris_test")
        answers = app.topic("iris_predictions").read().to_arrow()
        latest = answers.column("prediction").to_pylist()[-len(data["test"]) :]
        view.rounds.append((after, latest))
        _figures(view, running)
        time.sleep(options.pause)
    return view.rounds, running.page if options.ui else ""


@contextlib.contextmanager
def _started(app: App, options: Options, found: Scene, view: Show) -> Iterator[RunningPipeline]:
    """The pipeline, running; where the engine captures nothing itself, a capture beside it."""
    with contextlib.ExitStack() as stack:
        if options.source == "postgres" and options.engine == "flink":
            view.say("capturing beside Flink")
            stack.enter_context(_app(options, found).start(only="capture"))
        if options.engine != "local":
            view.say(f"starting the pipeline on {options.engine.title()}")
        master, jobmanager = (found.engine if options.engine == name else None for name in ("spark", "flink"))
        running = stack.enter_context(
            app.start(engine=options.engine, master=master, jobmanager=jobmanager, ui=options.ui)
        )
        show_page(options, running.page)
        if running.page:
            view.page = f"{'The dashboard' if options.ui else options.engine.title()} shows it at {running.page}"
            view.told(view.page)
        yield running


def _app(options: Options, found: Scene) -> App:
    if options.source != "debezium":
        return pipeline.captured(options.flavour, found.dsn, found.log)
    elsewhere = None if found.log.startswith("kafka://") else found.kafka
    return pipeline.from_debezium(options.flavour, found.log, elsewhere)


def _wait(running: RunningPipeline, options: Options, database: psycopg.Connection[Any], table: str) -> None:
    """Wait until every row of a table has been dealt with.

    Headrace's own capture knows what the database has committed. Of what another process has not written to its topics
    yet, nobody can know: the rows of the table are counted.
    """
    if options.source == "debezium" or options.engine == "flink":
        topic = f"{options.flavour}.public.{table}"
        count = database.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(table))).fetchone()
        rows = int(count[0]) if count else 0
        deadline = time.monotonic() + WAIT_SECONDS
        while (taken := running.captured.get(topic, 0)) < rows:
            if running.join(0.01):
                raise HeadraceError("the pipeline has ended")
            if time.monotonic() > deadline:
                raise WaitTimeout(f"{taken} of {rows} rows of {table} came through topics in {WAIT_SECONDS:.0f} s")
    running.wait(WAIT_SECONDS)


def _micro_batches(app: App, options: Options) -> None:
    """Spark runs a micro-batch on every interval, also when no row has come."""
    if options.source == "debezium":
        # Flattened messages do not show where transactions end: the interval's end closes the batch.
        app.tick("species")
    app.tick("species")


def _figures(view: Show, running: RunningPipeline) -> None:
    view.captured = sum(running.captured.values())
    view.learned = running.learned
    view.model = "species"
    if isinstance(running, Running):
        model = running["species"]
        view.model += f" version {model.version} at {model.position or 'its initial centres'}"


def _print_end(
    console: Console, view: Show, names: dict[int, int | None], result: dict[str, Any], found: Scene
) -> None:
    console.print(view.table(names))
    for item in result["rounds"]:
        right = f"{item['correct']} of {len(item['labels'])}"
        console.print(f"after {item['after']:<13} [bold]{right}[/] right", highlight=False)
    console.print(f"{view.line()} · {result['seconds']:.1f} s", highlight=False, style="dim", soft_wrap=True)
    print_next(
        console,
        found,
        "headrace topics cat iris_predictions",
        "headrace sql 'select iris_class, prediction, count(*) from iris_predictions group by all'",
    )


# -- data ---------------------------------------------------------------------------------------------------------


def read_data(directory: Path | None) -> dict[str, list[dict[str, Any]]]:
    """The three files, as rows.

    Raises:
        DeclarationError: a file or a column is missing.
    """
    root = directory or Path(str(files("headrace.demos.iris") / "data"))
    found = {}
    for name in ("train1", "train2", "test"):
        path = root / f"{name}.csv"
        try:
            table = pa.csv.read_csv(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DeclarationError(
                f"{path} cannot be read: {error}", advice="Give train1, train2, test.csv."
            ) from error
        missing = [column for column in COLUMNS if column not in table.column_names]
        if missing:
            raise DeclarationError(f"{path} has no column {missing[0]}", advice=f"Its header: {','.join(COLUMNS)}")
        found[name] = table.select(list(COLUMNS)).to_pylist()
    return found


def write_sql(directory: Path, data: Path | None) -> list[Path]:
    """The seed's three SQL files: each creates its table and inserts its rows in one transaction."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in read_data(data).items():
        table = "iris_test" if name == "test" else "iris_train"
        lines = [f"CREATE TABLE IF NOT EXISTS {table} ({TABLE_COLUMNS});", "BEGIN;"]
        lines += [
            f"INSERT INTO {table} ({', '.join(COLUMNS)}) VALUES ({', '.join(str(row[c]) for c in COLUMNS)});"
            for row in rows
        ]
        path = directory / f"{name}.sql"
        path.write_text("\n".join([*lines, "COMMIT;", ""]))
        written.append(path)
    return written


def match_clusters(clusters: Sequence[int], labels: Sequence[int]) -> dict[int, int | None]:
    """Cluster -> label, by the permutation with the most rows right; the first one wins a tie.

    >>> match_clusters([1, 1, 0, 2], [0, 0, 1, 2])
    {0: 1, 1: 0, 2: 2}
    """
    kinds: list[int | None] = list(dict.fromkeys([*range(3), *sorted(set(labels))]))
    numbers = sorted({*range(3), *clusters})
    kinds += [None] * (len(numbers) - len(kinds))

    def right(order: Sequence[int | None]) -> int:
        names = dict(zip(numbers, order, strict=False))
        return sum(names[cluster] == label for cluster, label in zip(clusters, labels, strict=True))

    best = max(itertools.permutations(kinds, len(numbers)), key=right)
    return dict(zip(numbers, best, strict=True))


def _correct(clusters: Sequence[int], labels: Sequence[int], names: dict[int, int | None]) -> int:
    return sum(names.get(cluster) == label for cluster, label in zip(clusters, labels, strict=True))


# -- the database --------------------------------------------------------------------------------------------------


def _insert(database: psycopg.Connection[Any], table: str, rows: Sequence[dict[str, Any]]) -> None:
    with database.transaction(), database.cursor() as cursor:
        cursor.executemany(insertion(table, COLUMNS), [[row[column] for column in COLUMNS] for row in rows])
