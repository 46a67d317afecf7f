"""Machine learning on live database changes: rows commit, models learn from them and predict, exactly once.

>>> import headrace as hr
>>> app = hr.App("iris", log="memory://")
>>> db = app.postgres("postgresql://localhost/shop", tables=r"public\\.iris_.*", prefix="flink")
>>> species = app.model("species", hr.KMeans(k=3), features=["petal_length", "petal_width"])
>>> species = species.learn(db["public.iris_train"], every=32)
>>> species.predict(db["public.iris_test"]).to("iris_predictions")
Stream(iris_predictions)
"""

from typing import TYPE_CHECKING

from headrace import errors, testing
from headrace.batch import Batch
from headrace.grade import metrics
from headrace.inspect import plot
from headrace.inspect.rows import Rows
from headrace.learn import adapters
from headrace.learn.base import Learner
from headrace.learn.category import category
from headrace.learn.images import image, vector
from headrace.learn.kmeans import KMeans
from headrace.learn.linear import LinearRegression
from headrace.learn.rows_file import csv
from headrace.pipeline.app import App
from headrace.pipeline.model import Model
from headrace.pipeline.stream import Database, Stream, Topics, Windowed
from headrace.transform.expressions import text

if TYPE_CHECKING:
    from headrace.dataset import Dataset
    from headrace.engines.local.running import Running, RunningModel
    from headrace.testing.servers import temporary_postgres

__version__ = "0.1.0"

# Imported when somebody asks: what App.start and Stream.dataset return, to be named in signatures, brings an engine.
_LATER = {
    "Dataset": "headrace.dataset",
    "Running": "headrace.engines.local.running",
    "RunningModel": "headrace.engines.local.running",
    "temporary_postgres": "headrace.testing.servers",
}

__all__ = [
    "App",
    "Batch",
    "Database",
    "Dataset",
    "KMeans",
    "Learner",
    "LinearRegression",
    "Model",
    "Rows",
    "Running",
    "RunningModel",
    "Stream",
    "Topics",
    "Windowed",
    "adapters",
    "category",
    "csv",
    "errors",
    "image",
    "metrics",
    "plot",
    "temporary_postgres",
    "testing",
    "text",
    "vector",
]


if not TYPE_CHECKING:  # a type checker is to find misspelt names

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
