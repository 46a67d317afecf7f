"""Machine learning on live database changes: rows commit, models learn from them and predict, exactly once.

>>> import headrace as hr
>>> app = hr.App("iris", log="memory://")
>>> db = app.postgres("postgresql://localhost/shop", tables=r"public\\.iris_.*", prefix="flink")
>>> species = app.model("species", hr.KMeans(k=3), features=["petal_length", "petal_width"])
>>> species = species.learn(db["public.iris_train"], every=32)
>>> species.predict(db["public.iris_test"]).to("iris_predictions")
Stream(iris_predictions)
"""

TYPE_CHECKING = False  # as typing has it, whose import alone is a tenth of what Python takes to start

if TYPE_CHECKING:
    from headrace import errors, testing
    from headrace.batch import Batch
    from headrace.dataset import Dataset
    from headrace.engines.local.running import Running, RunningModel
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
    from headrace.testing.servers import temporary_postgres
    from headrace.transform.expressions import text

__version__ = "0.1.0"

# Imported when somebody asks: a command handles signals before it has loaded NumPy and Arrow, which takes a while.
_MODULES = {
    "adapters": "headrace.learn.adapters",
    "errors": "headrace.errors",
    "metrics": "headrace.grade.metrics",
    "plot": "headrace.inspect.plot",
    "testing": "headrace.testing",
}
_NAMES = {
    "App": "headrace.pipeline.app",
    "Batch": "headrace.batch",
    "Database": "headrace.pipeline.stream",
    "Dataset": "headrace.dataset",
    "KMeans": "headrace.learn.kmeans",
    "Learner": "headrace.learn.base",
    "LinearRegression": "headrace.learn.linear",
    "Model": "headrace.pipeline.model",
    "Rows": "headrace.inspect.rows",
    "Running": "headrace.engines.local.running",
    "RunningModel": "headrace.engines.local.running",
    "Stream": "headrace.pipeline.stream",
    "Topics": "headrace.pipeline.stream",
    "Windowed": "headrace.pipeline.stream",
    "category": "headrace.learn.category",
    "csv": "headrace.learn.rows_file",
    "image": "headrace.learn.images",
    "temporary_postgres": "headrace.testing.servers",
    "text": "headrace.transform.expressions",
    "vector": "headrace.learn.images",
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
        from importlib import import_module

        if name in _MODULES:
            found: object = import_module(_MODULES[name])
        elif name in _NAMES:
            found = getattr(import_module(_NAMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, found)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
