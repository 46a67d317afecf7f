"""The fish factory of the guide (docs/guide/labels.md), asked over HTTP about fish not yet weighed.

    python examples/serve.py
    curl 'http://127.0.0.1:8000/prediction?length=86.37&height=18.74&species=salmon&fish=1'

What is asked is written to the model's own topic. Type what the scales said later, and the answer is graded:

    {"Fish_Id": "1", "Weight": 4.4399}

    headrace topics cat weight-diff --log fish.headrace
    curl -X POST http://127.0.0.1:8000/train

http://127.0.0.1:8000/docs is the same in a browser. `headrace serve examples/serve.py` serves it without the typing.
"""

import contextlib
import json
import os
import sys
from importlib.resources import files

import headrace as hr

LOG = os.environ.get("FISH_LOG", "fish.headrace")
TRAINING = str(files("headrace.demos.fish") / "data" / "training.csv")

app = hr.App("fish", log=LOG)
measured, weighed = app.topic("machine-measurement", append=True), app.topic("machine-weight", append=True)

weight = app.model(
    "weight",
    hr.LinearRegression(),
    features=["Length", "Height", hr.category("Species")],
    target="Weight",
    initial=hr.csv(TRAINING, rename=str.capitalize),
)
predicted = weight.predict(measured).to("weight-prediction")
graded = predicted.grade(weighed, on="Fish_Id", within="1 day", metric=hr.metrics.relative_error).to("weight-diff")
weight.retrain(rows=graded.last(50))
weight.serve(
    "/prediction",
    inputs={"length": "Length", "height": "Height", "species": "Species", "fish": ("Fish_Id", str)},
    digits=4,
    log_to="weight-prediction",
)

if __name__ == "__main__":
    with app.start(serve=True) as running:
        print(f"ask at {running.server.url}/prediction; type weights here", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            for line in sys.stdin:
                if line.strip():
                    running.append("machine-weight", json.loads(line))
