"""Screenshots of every page of the dashboard, into ``docs/screens/``: `make screens`.

The pipeline is the fish demo's, running, with all its fish weighed: two versions of the model, an alarm, a training.
Chromium must be installed.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from headrace.demos.fish import pipeline
from headrace.demos.fish.events import read_data
from headrace.serve.settings import ServeSettings

HERE = Path(__file__).parent / "screens"
WIDTHS = {1280: 800, 390: 844}
PATIENCE_MS = 60_000
ALARM = "weight-retrain"
PAGES = {
    "pipeline": "/",
    "pipeline-then": "/?at=machine-weight:60",
    "topics": "/topics",
    "topic": "/topics/weight-diff",
    "row": "/topics/weight-diff/100",
    "models": "/models",
    "model": "/models/weight",
    "version": "/models/weight/2",
    "alarms": "/alarms",
    "alarm": f"/alarms/{ALARM}/0",
    "letters": "/letters",
    "sql": "/sql?show=bars&q="
    + "select+Species%2C+model_version%2C+round(avg(error)%2C+4)+as+error%2C+count(*)+as+fish%0A"
    "from+%22weight-diff%22+group+by+all+order+by+all",
    "health": "/health",
}


def main() -> None:
    """Write the pictures that are named, or all."""
    wanted = {name: PAGES[name] for name in sys.argv[1:] or PAGES}
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
        data = read_data(None)
        app = pipeline.from_topics(Path(folder) / "fish.headrace", data.training)
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with app.start(ui=ServeSettings(port=0)) as running:
            for event in data.events():
                rows = data.sent[event.machine].rows.slice(event.row, 1)
                running.append(event.machine, rows, key=["Fish_Id"])
            running.wait(60)
            for width, height in WIDTHS.items():
                for scheme in ("light", "dark"):
                    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                    page = context.new_page()
                    page.set_default_timeout(PATIENCE_MS)
                    for name, path in wanted.items():
                        save(page, running.page.removesuffix("/") + path, HERE / f"{name}-{width}-{scheme}.png")
                    context.close()
        browser.close()


def save(page: Page, address: str, path: Path) -> None:
    """Save a page as a person sees it when everything of it is there, in 256 colours: it is to stay small."""
    answer: Any = page.goto(address, wait_until="load")
    if answer.status == 404:
        return
    page.locator(".travel input").wait_for()
    if "at=" not in address:
        expect(page.locator("[data-live='log/state']")).to_have_text("running", timeout=PATIENCE_MS)
    # What stands in parts of the page that are asked for on their own.
    page.wait_for_function("() => !document.querySelector('.htmx-request')")
    whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture = whole.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


if __name__ == "__main__":
    main()
