"""The batch mode: rows are captured and learned by replay; then others are predicted while they are inserted.

It follows https://debezium.io/blog/2023/05/02/tensorflow-mnist-classification/: the model is trained on the rows that
are there, evaluation begins on a topic that does not exist, and counts up while rows arrive.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql
from rich.console import Console
from threadpoolctl import threadpool_limits

import headrace as hr
from headrace.demos.mnist import digits, pipeline
from headrace.demos.mnist.options import Options
from headrace.demos.mnist.recipes import CLASSES, SEED, Recipe, recipe
from headrace.demos.mnist.show import Show, draw_curve, draw_digit, print_three, result_of, share_right
from headrace.demos.screen import keep_page, print_kept, print_next, say_pictures, show_page
from headrace.demos.servers import Scene, clean_up, make_table, stage
from headrace.engines.local.running import Running

APP = "mnist"
TABLES = ("mnist_train", "mnist_test")
TRAIN, TEST = "tf.public.mnist_train", "tf.public.mnist_test"
WAIT_SECONDS = 120.0
TRANSACTIONS = 20


def play(options: Options, *, show: bool = True, console: Console | None = None) -> dict[str, Any]:
    """Play the batch mode; returns its result as JSON values."""
    started = time.monotonic()
    name = options.model or "mlp"
    chosen = recipe(name)
    model = chosen.make()  # before any server: a missing library is said at once
    data = digits.read_data(options.idx)
    view = Show(console or Console(), show, title=f"MNIST from PostgreSQL: {name}")
    with contextlib.ExitStack() as stack:
        with view.drawing():
            found = stack.enter_context(stage(APP, options, view.say, topics=(TRAIN, TEST)))
            learned = _learn(chosen, model, options, found, data, view)
            answer, page = _evaluate(chosen, model, options, found, data, view, stack)
        folder = options.png or found.pictures
        pictures = [
            draw_digit(folder / "digit3.png", data.three, answer),
            draw_curve(folder / "accuracy.png", view.curve, f"{name}: test rows as they arrive"),
        ]
        test_rows = view.curve[-1][0]
        result = result_of("batch", name, view, found, started, train_rows=learned, test_rows=test_rows, three=answer)
        if show:
            _print_end(view.console, result, data, pictures, found)
            keep_page(options, page, view.console)
    if options.keep:
        print_kept(found)
    return result


# -- the first half: rows that are there are learned ------------------------------------------------------------------


def _learn(chosen: Recipe, model: Any, options: Options, found: Scene, data: digits.Digits, view: Show) -> int:
    """Capture the training rows, and learn them from the log; returns how many there are."""
    with psycopg.connect(found.dsn, autocommit=True) as database:
        # All of them: a pipeline is declared on tables that are there. They have no key, as the article's.
        for table in TABLES:
            make_table(database, table, sql.SQL(digits.COLUMNS), whole_old_rows=True)
        view.say(f"loading {len(data.train):,} digits into mnist_train")
        _copy(database, "mnist_train", digits.rows(data.train))
    app, train = pipeline.capture(found.dsn, found.log)
    view.say("capturing mnist_train")
    with app.start() as running:
        running.wait(WAIT_SECONDS)
        rows = running.log.topics()[TRAIN].rows
    epochs = options.epochs or chosen.epochs
    view.count(f"learning the topic {TRAIN} {epochs} times", epochs * rows)
    # Threads of BLAS wait for each other by spinning: on shared cores that takes ten times as long.
    with threadpool_limits(1):
        batches = train.dataset(
            chosen.batch_size, features=chosen.features, target="labels", epochs=epochs, shuffle=True, seed=SEED
        )
        chosen.train(model, batches, lambda n: setattr(view, "done", view.done + n))
    return rows


# -- the second half: rows that come are predicted --------------------------------------------------------------------


def _evaluate(
    chosen: Recipe,
    model: Any,
    options: Options,
    found: Scene,
    data: digits.Digits,
    view: Show,
    until: contextlib.ExitStack,
) -> tuple[int, str]:
    """Predict the test rows while they are inserted, by a pipeline that runs until a stack ends.

    Returns:
        The prediction for the 3 drawn by hand, and the dashboard's address.
    """
    classes = None if isinstance(model, hr.Learner) else CLASSES
    app = pipeline.classify(found.dsn, found.log, model, chosen.features, classes)
    if options.postgres is not None:
        until.callback(_clean_up, found)
    running = until.enter_context(app.start(ui=options.ui))
    show_page(options, running.page, view.console)
    with psycopg.connect(found.dsn, autocommit=True) as database:
        there = TEST in running.log.topics()
        view.count(f"waiting for {TEST}{'' if there else ', which does not exist yet'}", len(data.test))
        time.sleep(options.pause)
        rows = digits.rows(data.test)
        step = -(-rows.num_rows // TRANSACTIONS)
        for start in range(0, rows.num_rows, step):
            _copy(database, "mnist_test", rows.slice(start, step))
            running.wait(WAIT_SECONDS)
            _count(app, running, view)
            time.sleep(options.pause)
        answer = int(running["digits"].predict([{"pixels": data.three}])[0])
    return answer, running.page


def _clean_up(found: Scene) -> None:
    with psycopg.connect(found.dsn, autocommit=True) as database:
        clean_up(database, APP)


def _count(app: hr.App, running: Running, view: Show) -> None:
    """Another point of the curve: of all that is predicted by now."""
    answers = app.topic(pipeline.PREDICTIONS).select("prediction", "labels").read().to_arrow()
    predicted, labels = (answers.column(name).to_numpy() for name in ("prediction", "labels"))
    view.done = len(labels)
    view.point(len(labels), share_right(predicted, labels))


def _copy(database: psycopg.Connection[Any], table: str, rows: pa.RecordBatch) -> None:
    """Insert rows, in one transaction."""
    with database.cursor() as cursor, cursor.copy(f"COPY {table} (pixels, labels) FROM STDIN".encode()) as copy:
        for row in rows.to_pylist():
            copy.write_row((row["pixels"], row["labels"]))


def _print_end(
    console: Console, result: dict[str, Any], data: digits.Digits, pictures: list[Path | None], found: Scene
) -> None:
    print_three(console, data.three, result["digit3"])
    console.print(
        f"[bold]{result['accuracy']:.2%}[/] of {result['test_rows']:,} test rows are right, "
        f"after {result['train_rows']:,} rows were learned · {result['seconds']:.1f} s",
        highlight=False,
    )
    say_pictures(console, pictures)
    print_next(console, found, f"headrace topics cat {pipeline.PREDICTIONS} --limit 1")
