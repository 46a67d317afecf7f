"""Rows in a file, named in a declaration and read when they are needed: what an initial model is trained on."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.arguments import checked
from headrace.errors import DeclarationError

Rename = Callable[[str], str] | Mapping[str, str]


@dataclass(frozen=True, slots=True, repr=False)
class CsvRows:
    """See `csv`.

    Attributes:
        path: where the file is, relative to the working directory at the time of reading.
        rename: what its columns are called instead.
    """

    path: Path
    rename: Rename | None = None

    def __repr__(self) -> str:
        return f"csv({str(self.path)!r})"

    def read(self) -> pa.RecordBatch:
        """Return all rows, the columns renamed; types are inferred from the values.

        Raises:
            DeclarationError: no such file, no CSV, no columns, or two columns of one name.
        """
        return self._parsed(self._bytes())

    def describe(self) -> Any:
        """JSON values for the model's fingerprint: the file's name, a digest of its bytes, the columns' names.

        The folder is left out: a file that is moved as it is changes nothing.

        Raises:
            DeclarationError: as for `read`.
        """
        data = self._bytes()
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        return {"csv": self.path.name, "blake2b": digest, "columns": self._parsed(data).schema.names}

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DeclarationError(
                f"the CSV file «{self.path}» cannot be read: {error.strerror or error}",
                advice=f"Looked for it in {Path.cwd()}: give the right path, or run where it is.",
            ) from error

    def _parsed(self, data: bytes) -> pa.RecordBatch:
        from pyarrow import csv as arrow_csv

        try:
            table = arrow_csv.read_csv(io.BytesIO(data))
            names = table.column_names
            undecoded = [field.name for field in table.schema if pa.types.is_binary(field.type)]
            if undecoded:
                raise pa.ArrowInvalid(f"the columns {undecoded} hold bytes that are not UTF-8")
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise DeclarationError(
                f"the CSV file «{self.path}» cannot be read: {error}",
                advice="It must be UTF-8, with a first line of column names and as many values in every line.",
            ) from error
        columns = [column.combine_chunks() for column in table.columns]
        return pa.RecordBatch.from_arrays(columns, names=self._renamed(names))

    def _renamed(self, names: list[str]) -> list[str]:
        """Return the names the columns have here.

        Raises:
            DeclarationError: two alike, a name that is no text, a column to rename that is not there.
        """
        if isinstance(self.rename, Mapping):
            missing = sorted(self.rename.keys() - set(names))
            if missing:
                raise DeclarationError(
                    f"rename names columns that «{self.path}» does not have: {missing}",
                    advice=f"It has {names}.",
                )
            renamed = [self.rename.get(name, name) for name in names]
        else:
            renamed = names if self.rename is None else [self.rename(name) for name in names]
        wrong = [new for new in renamed if not isinstance(new, str)]
        twice = [new for new, count in Counter(map(str, renamed)).items() if count > 1]
        if wrong or twice:
            what = f"rename gave {wrong[0]!r} for a name" if wrong else f"two columns are called {twice}"
            raise DeclarationError(
                f"in the CSV file «{self.path}» {what}; its columns are {names}",
                advice="Let rename= give each column a name of its own.",
            )
        return renamed


@checked
def csv(path: str | Path, *, rename: Rename | None = None) -> CsvRows:
    """Return rows of a CSV file with a first line of names, for ``initial=`` of a model. Nothing is read yet.

    Args:
        path: of the file, UTF-8, separated by commas.
        rename: what its columns are called instead: a function of the name, such as ``str.capitalize``, or a mapping
            of some names to others.

    Raises:
        DeclarationError: rename is neither.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "training.csv"
    ...     _ = file.write_text("species,length\\nsalmon,88.424\\nsalmon,89.132\\n")
    ...     csv(file, rename=str.capitalize).read().to_pydict()
    {'Species': ['salmon', 'salmon'], 'Length': [88.424, 89.132]}
    """
    if rename is not None and not callable(rename) and not isinstance(rename, Mapping):
        raise DeclarationError(f"rename is {rename!r}", advice="Give a function such as str.capitalize, or a dict.")
    return CsvRows(Path(path), dict(rename) if isinstance(rename, Mapping) else rename)
