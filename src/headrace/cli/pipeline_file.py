"""The pipeline in a Python file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from headrace.errors import DeclarationError
from headrace.pipeline.app import App


def load_app(file: str) -> App:
    """The one App in a Python file; ``file.py:name`` chooses among several.

    Raises:
        DeclarationError: no such file, no App, or several and none chosen.
    """
    path, _, name = file.partition(".py:")
    source = Path(f"{path}.py" if name else file)
    if not source.is_file():
        raise DeclarationError(f"there is no file {source}")
    spec = importlib.util.spec_from_file_location("__headrace_app__", source)
    if spec is None or spec.loader is None:
        raise DeclarationError(f"{source} is no Python file", advice="Name the file that declares the app.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["__headrace_app__"] = module
    sys.path.insert(0, str(source.resolve().parent))
    spec.loader.exec_module(module)
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    if name:
        if name not in apps:
            raise DeclarationError(
                f"{source} has no App named «{name}»", advice=f"It has: {', '.join(apps) or 'none'}."
            )
        return apps[name]
    distinct = {id(value): value for value in apps.values()}
    if len(distinct) != 1:
        raise DeclarationError(
            f"{source} holds {len(distinct)} Apps", advice=f"Choose one as {source}:NAME ({', '.join(apps) or 'none'})."
        )
    return next(iter(distinct.values()))
