"""Pictures of digits and of accuracies, for notebooks; they need the extra ``plot`` (matplotlib).

Each function draws on the axes that it is given, or on the current ones, and returns them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace import plain_values
from headrace.batch import as_records
from headrace.errors import DeclarationError, MissingExtra
from headrace.inspect.rows import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = ("prediction", "labels", "label")


def __dir__() -> list[str]:
    return ["accuracy", "digit"]


@runtime_checkable
class Evaluated(Protocol):
    """A declared model whose scores are in a topic, such as `headrace.pipeline.model.Model`."""

    def metrics_rows(self) -> Rows:
        """Return the rows of its topic of metrics, as the log holds them now."""
        ...


def digit(row: Any, *, ax: Axes | None = None, title: object = None, pixels: str = "pixels") -> Axes:
    """Draw one image, with its prediction (or else its label) as the title.

    Args:
        row: a row with a column of pixels (a dict, a pandas Series, a one-row Arrow or pandas table); or the pixels
            themselves, as bytes or numbers, row by row; or an array of shape (height, width).
        ax: where to draw; the current axes by default.
        title: instead of the prediction.
        pixels: the column's name.

    Raises:
        DeclarationError: the row has no such column, or what is there is no square image.
        MissingExtra: matplotlib is not installed.

    >>> digit({"pixels": bytes(784), "prediction": 3}).get_title()  # doctest: +SKIP
    '3'
    """
    values, known = _image_of(row, pixels)
    image = _square(values)
    axes = _axes(ax)
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=255 if image.max(initial=0) > 1 else 1)
    shown = title if title is not None else known
    axes.set_title("" if shown is None else str(shown))
    axes.set_axis_off()
    return axes


def accuracy(
    model: Any, *, ax: Axes | None = None, label: str | None = None, target: str | None = None, metric: str = "accuracy"
) -> Axes:
    """Draw how accuracy changed with the rows seen.

    Args:
        model: a declared model, whose topic ``<model>-metrics`` is read; or rows of that topic; or rows of predictions
            with their labels, of which the share that was right until each row is drawn; or pairs (rows, accuracy).
        ax: where to draw; the current axes by default.
        label: the line's name in a legend.
        target: the labels' column, in rows of predictions; ``labels`` or ``label`` by default.
        metric: the metric's name, in rows of metrics.

    Raises:
        DeclarationError: there is nothing of the kind in the rows.
        MissingExtra: matplotlib is not installed.
    """
    counts, values = _curve(model, target, metric)
    axes = _axes(ax)
    axes.plot(counts, values, marker="." if len(counts) < 60 else None, label=label)
    axes.set_xlabel("rows")
    axes.set_ylabel(metric)
    if len(values) and metric == "accuracy":
        axes.set_ylim(max(0.0, math.floor(min(values) * 10) / 10 - 0.05), 1.0)
    axes.grid(visible=True, alpha=0.3)
    if label is not None:
        axes.legend()
    return axes


def _axes(given: Axes | None) -> Axes:
    if given is not None:
        return given
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtra("plot", "a picture") from error
    return pyplot.gca()


# -- images -----------------------------------------------------------------------------------------------------------


def _image_of(row: Any, name: str) -> tuple[Any, Any]:
    """Pixels, and what is known of the image: its prediction or else its label."""
    if isinstance(row, Rows):
        row = row.to_arrow()
    if isinstance(row, pa.Table | pa.RecordBatch):
        row = _single(plain_values.rows(row))
    elif hasattr(row, "to_dict") and hasattr(row, "columns"):
        row = _single(row.to_dict("records"))
    elif hasattr(row, "to_dict"):
        row = row.to_dict()
    if not isinstance(row, Mapping):
        return row, None
    if row.get(name) is None:
        raise DeclarationError(f"the row has no «{name}», only {', '.join(map(str, row))}", advice="Say pixels=….")
    return row[name], next((row[name] for name in _NAMES if row.get(name) is not None), None)


def _single(rows: list[Any]) -> Any:
    if len(rows) != 1:
        raise DeclarationError(f"one row is drawn, not {len(rows)}", advice="Draw them one by one.")
    return rows[0]


def _square(values: Any) -> npt.NDArray[Any]:
    image = (
        np.frombuffer(values, np.uint8) if isinstance(values, bytes | bytearray | memoryview) else np.asarray(values)
    )
    if image.dtype.kind not in "fiub":
        raise DeclarationError(f"pixels are numbers or bytes, not {image.dtype}")
    if image.ndim == 2 and 1 not in image.shape:
        return image
    side = math.isqrt(image.size)
    if side * side != image.size or not image.size:
        raise DeclarationError(
            f"{image.size} pixels are no square image", advice="Give an array of shape (height, width)."
        )
    return image.reshape(side, side)


# -- curves -----------------------------------------------------------------------------------------------------------


def _curve(model: Any, target: str | None, metric: str) -> tuple[list[float], list[float]]:
    if isinstance(model, Evaluated):
        model = model.metrics_rows()
    try:
        table = pa.Table.from_batches([as_records(model)])
    except TypeError:
        pairs = [tuple(pair) for pair in model]
        if any(len(pair) != 2 for pair in pairs):
            raise DeclarationError("a curve is drawn from pairs (rows, accuracy)") from None
        return [float(count) for count, _ in pairs], [float(value) for _, value in pairs]
    return _of_predictions(table, target) if "prediction" in table.column_names else _of_metrics(table, metric)


def _of_metrics(table: pa.Table, metric: str) -> tuple[list[float], list[float]]:
    names = table.column_names
    count = next((column for column in ("learned", "rows") if column in names), None)
    if metric not in names or count is None:
        raise DeclarationError(
            f"rows of {', '.join(names)} hold no curve of «{metric}»",
            advice="Give rows of a topic of metrics, of predictions with labels, or pairs (rows, accuracy).",
        )
    kept = table.select([count, metric]).drop_null()
    return kept.column(0).cast(pa.float64()).to_pylist(), kept.column(1).to_pylist()


def _of_predictions(table: pa.Table, target: str | None) -> tuple[list[float], list[float]]:
    name = target or next((column for column in _NAMES[1:] if column in table.column_names), None)
    if name is None or name not in table.column_names:
        raise DeclarationError(
            f"the predictions have no column «{name or 'labels'}»", advice="Name the labels' column: target=…."
        )
    kept = table.select(["prediction", name]).drop_null()
    predicted = kept.column(0).to_numpy()
    right = predicted == kept.column(1).to_numpy().astype(predicted.dtype)
    counts = np.arange(1.0, len(right) + 1)
    return list(counts.tolist()), list((np.cumsum(right) / counts).tolist())
