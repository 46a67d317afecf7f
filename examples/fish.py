"""The fish factory of the guide (docs/guide/labels.md), on a cluster's topics that others write to.

Any Kafka will do; `headrace produce` plays the two machines:

    FISH_LOG=kafka://localhost:9092/fish python examples/fish.py
    headrace produce machine-measurement --file measurement.jsonl --rate 1/s --log kafka://localhost:9092
    headrace produce machine-weight --file weight.jsonl --rate 1/s --log kafka://localhost:9092    # ten seconds later
    headrace topics cat weight-diff --follow --log kafka://localhost:9092/fish                     # in a third terminal

`training.csv` has the columns species, length, height and weight; the package has one, with the two other files:
`python -c "import headrace.demos.fish as fish; print(fish.__path__[0] + '/data')"`.
"""

import os

import headrace as hr

LOG = os.environ.get("FISH_LOG", "kafka://localhost:9092/fish")
TRAINING = os.environ.get("FISH_TRAINING", "training.csv")

app = hr.App("fish", log=LOG)
measured, weighed = app.topic("machine-measurement"), app.topic("machine-weight")

weight = app.model(
    "weight",
    hr.LinearRegression(),
    features=["Length", "Height", hr.category("Species")],
    target="Weight",
    initial=hr.csv(TRAINING, rename=str.capitalize),
)
predicted = weight.predict(measured).to("weight-prediction")
graded = predicted.grade(weighed, on="Fish_Id", within="1 min", metric=hr.metrics.relative_error).to("weight-diff")
alarm = graded.window("1 min").mean("error").above(0.15).to("weight-retrain")
weight.retrain(on=alarm, rows=graded.last(50))

if __name__ == "__main__":
    app.run()
