"""Arguments of the words that a pipeline is declared with, checked against their annotations when they are given.

A number as text, a stream's name in place of the stream, a misspelled keyword: refused where it is written, and not by
whoever meets it first.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from headrace.errors import DeclarationError, near

P = ParamSpec("P")
T = TypeVar("T")

# What may hold a password is not shown.
_HIDDEN = frozenset({"dsn", "uri", "url", "kafka", "registry", "secret", "headers"})
_WORDS: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    bytes: "bytes",
    None: "None",
    type(None): "None",
}
_LONGEST = 60


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that refuses arguments which it does not have, or of other types than it says.

    Annotations that are known to type checkers only are not looked at.

    Raises:
        DeclarationError: by what is returned.

    >>> @checked
    ... def window(rows: int, *, emit: Literal["final", "changes"] = "final") -> int: return rows
    >>> window("5")
    Traceback (most recent call last):
    headrace.errors.DeclarationError: window(rows='5'): a whole number is wanted, and this is str
      → Give a whole number.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def called(*given: P.args, **named: P.kwargs) -> T:
        _check(function, signature, given, named)
        return function(*given, **named)

    return called


def checked_methods(kind: type[T]) -> type[T]:
    """Check the arguments of a class's own public methods, and of ``[…]``."""
    for name, method in list(vars(kind).items()):
        if inspect.isfunction(method) and (not name.startswith("_") or name == "__getitem__"):
            setattr(kind, name, checked(method))
    return kind


def _check(function: Callable[..., Any], signature: inspect.Signature, given: Any, named: Mapping[str, Any]) -> None:
    word = function.__qualname__.removesuffix(".__init__").removesuffix(".__getitem__").rpartition(".")[2]
    try:
        bound = signature.bind(*given, **named)
    except TypeError as error:
        raise _unbound(word, signature, named, str(error)) from None
    hints = _hints(function)
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        values = {name: value}
        if kind is inspect.Parameter.VAR_KEYWORD:
            values = value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            values = {f"{name}[{i}]": entry for i, entry in enumerate(value)}
        for shown, entry in values.items():
            if name in hints and not _fits(entry, hints[name]):
                raise _refused(word, shown, entry, hints[name])


def _unbound(word: str, signature: inspect.Signature, named: Mapping[str, Any], reason: str) -> DeclarationError:
    """Return the refusal of arguments that a function does not take, or of too few."""
    known = [name for name in signature.parameters if name != "self"]
    strange = next((name for name in named if name not in known), None)
    takes = f"It takes {', '.join(known) or 'nothing'}."
    if strange is None:
        return DeclarationError(f"{word}(…): {reason}", advice=takes)
    return DeclarationError(f"{word}(…) has no argument «{strange}»{near(strange, known)}", advice=takes)


def _refused(word: str, name: str, value: Any, hint: Any) -> DeclarationError:
    shown = "…" if name in _HIDDEN else repr(value)
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    wanted = _described(hint)
    what = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    return DeclarationError(f"{word}({name}={shown}): {wanted} is wanted, and this is {what}", advice=f"Give {wanted}.")


_known_hints: dict[Callable[..., Any], dict[str, Any]] = {}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations that can be looked up, by the arguments' names."""
    if function not in _known_hints:
        names = {**vars(sys.modules[function.__module__])}
        found: dict[str, Any] = {}
        for name, hint in function.__annotations__.items():
            try:
                found[name] = eval(hint, names) if isinstance(hint, str) else hint
            except NameError:  # imported for type checkers only
                continue
        _known_hints[function] = found
    return _known_hints[function]


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type as an annotation says it."""
    origin: Any = get_origin(hint)
    parts: tuple[Any, ...] = get_args(hint)
    if hint is Any or isinstance(hint, TypeVar | str):
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if hint in (int, float):
        wanted = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, wanted) and not isinstance(value, bool)
    kind = origin or hint
    if not isinstance(kind, type):
        return kind is not Callable or callable(value)
    if not isinstance(value, kind):
        return False
    if kind in (Sequence, Iterable, list) and parts and not isinstance(value, str):
        # What can be gone through only once is left as it is.
        return not isinstance(value, Sequence) or all(_fits(entry, parts[0]) for entry in value)
    if isinstance(value, tuple) and parts and Ellipsis not in parts:
        return len(value) == len(parts) and all(_fits(value[i], part) for i, part in enumerate(parts))
    if isinstance(value, Mapping) and kind is Mapping and parts:
        return all(_fits(key, parts[0]) and _fits(entry, parts[1]) for key, entry in value.items())
    return kind is not Sequence or not isinstance(value, bytes)


def _described(hint: Any) -> str:
    """Return what an annotation asks for, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(_described(part) for part in parts))
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Literal:
        return " or ".join(f'"{part}"' if isinstance(part, str) else repr(part) for part in parts)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin in (Sequence, Iterable, list):
        return f"a list of {_described(parts[0]).removeprefix('a ')}" if parts and parts[0] is not Any else "a list"
    if origin is Mapping:
        return "a dict"
    if origin is tuple:
        return f"a tuple of {', '.join(map(_described, parts))}"
    if origin is Callable or hint is Callable:
        return "a function"
    name = getattr(hint, "__name__", str(hint))  # annotations share no type
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
