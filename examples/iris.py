"""The Iris pipeline of the README, on a database of your own.

The server needs `wal_level = logical`. `headrace demo iris --write-sql sql` writes SQL files that make the tables and
fill them:

    psql -f sql/train1.sql && psql -f sql/test.sql
    IRIS_DSN=postgresql://localhost/shop python examples/iris.py
    psql -f sql/train2.sql && psql -f sql/test.sql                      # in another terminal
    headrace topics cat iris_predictions --follow --log iris.headrace   # in a third
"""

import os

import headrace as hr

DSN = os.environ.get("IRIS_DSN", "postgresql://localhost/shop")
CENTERS = [[6.0, 3.0, 1.0, 0.0], [6.0, 3.0, 2.0, 1.0], [6.0, 3.0, 3.0, 2.0]]

app = hr.App("iris", log="iris.headrace")
db = app.postgres(DSN, tables=r"public\.iris_.*", prefix="flink")

species = app.model(
    "species",
    hr.KMeans(k=3, initial_centers=CENTERS),
    features=["sepal_length", "sepal_width", "petal_length", "petal_width"],
)
species.learn(db["public.iris_train"], every=32)
species.predict(db["public.iris_test"]).to("iris_predictions")

if __name__ == "__main__":
    app.run()
