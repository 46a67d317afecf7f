"""Names and values that are scripts are text on every page of models and alarms; odd numbers break none."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import headrace as hr
from headrace.serve.settings import ServeSettings

SCRIPT = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
NAME = "m <b>'\"&ü"


def test_scripts_are_text_and_odd_numbers_are_shown(page: Any, tmp_path: Path) -> None:
    app = hr.App("hostile", log=str(tmp_path / "hostile.headrace"))
    model = app.model(NAME, hr.LinearRegression(), features=["x", hr.category("kind")], target="y")
    truth = app.topic("truth", append=True)
    predicted = model.predict(app.topic("rows", append=True)).to("answers <i>")
    graded = predicted.grade(truth, on="id", within="1 h", metric=hr.metrics.absolute_error).to("graded <i>")
    graded.above(5.0, column="error").to("alarms <i>")
    model.retrain(rows=graded.last(10))
    with app.start(serve=ServeSettings(port=0)) as running:
        numbers = [0.0, 1.0, float("nan"), float("inf"), -1e308, None]
        running.append("rows", [{"id": n, "x": float(n), "kind": SCRIPT} for n in range(3)])
        running.append("truth", [{"id": n, "y": 2.0 * n, "kind": SCRIPT} for n in range(3)])
        running.wait()
        running.retrain(NAME)
        running.append("rows", [{"id": 10 + n, "x": x, "kind": SCRIPT} for n, x in enumerate(numbers)])
        running.append("truth", [{"id": 10 + n, "y": 50.0, "kind": SCRIPT} for n in range(len(numbers))])
        running.wait()
        assert running.server is not None
        ui, name = f"{running.server.url}/ui", quote(NAME, safe="")
        page.goto(f"{ui}/models/{name}")
        page.get_by_role("heading", name=NAME, exact=True).wait_for()
        page.locator("#asked").get_by_text("by version 2").wait_for()
        page.locator("#charts .uplot canvas").first.wait_for()
        page.locator("#parameters table").wait_for()
        for place in (
            "alarms",
            f"models/{name}/2",
            f"models/{name}/compare?a=1&b=2",
            f"topics/{quote('graded <i>')}/4",
        ):
            page.goto(f"{ui}/{place}")
            page.get_by_role("heading", level=1).wait_for()
            assert page.title() != "owned"
        page.goto(f"{ui}/alarms")
        page.locator("tbody a").first.click()
        page.locator("main").get_by_text("onerror").first.wait_for()
        assert page.locator("main img, main script").count() == 0
