"""Machine learning on live database changes: rows commit, models learn from them and predict, exactly once.

>>> import headrace as hr
>>> app = hr.App("iris", log="memory://")
>>> db = app.postgres("postgresql://localhost/shop", tables=r"public\\.iris_.*", prefix="flink")
>>> species = app.model("species", hr.KMeans(k=3), features=["petal_length", "petal_width"])
>>> species = species.learn(db["public.iris_train"], every=32)
>>> species.predict(db["public.iris_test"]).to("iris_predictions")
Stream(iris_predictions)
"""

from headrace import errors, testing
from headrace.batch import Batch
from headrace.grade import metrics
from headrace.inspect import plot
from headrace.learn import adapters
from headrace.learn.base import Learner
from headrace.learn.category import category
from headrace.learn.images import image, vector
from headrace.learn.kmeans import KMeans
from headrace.learn.linear import LinearRegression
from headrace.learn.rows_file import csv
from headrace.pipeline.app import App
from headrace.transform.expressions import text

__version__ = "0.1.0"

__all__ = [
    "App",
    "Batch",
    "KMeans",
    "Learner",
    "LinearRegression",
    "adapters",
    "category",
    "csv",
    "errors",
    "image",
    "metrics",
    "plot",
    "testing",
    "text",
    "vector",
]
