"""Java's regular expressions, as Debezium reads them, in Python's.

Debezium matches names whole, whatever the case of ASCII letters (``Pattern.CASE_INSENSITIVE``). What Python's `re` has
under another name is translated; what it has not is refused. Source: ``java.util.regex.Pattern`` of Java 17.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from headrace.errors import DeclarationError

# POSIX classes of Java are ASCII only; what stands inside brackets.
_POSIX = {
    "Lower": "a-z",
    "Upper": "A-Z",
    "ASCII": r"\x00-\x7f",
    "Alpha": "a-zA-Z",
    "Digit": "0-9",
    "Alnum": "a-zA-Z0-9",
    "Punct": r"!-/:-@\[-`{-~",
    "Graph": "!-~",
    "Print": " -~",
    "Blank": r" \t",
    "Cntrl": r"\x00-\x1f\x7f",
    "XDigit": "0-9a-fA-F",
    "Space": r" \t\n\x0b\f\r",
}
_BLANK = r" \t\xa0\u1680\u180e\u2000-\u200a\u202f\u205f\u3000"  # \h
_LINE = r"\n\x0b\f\r\x85\u2028\u2029"  # \v
_SAME = frozenset("dDwWsSbBA.\\+*?()[]{}|^$/-&~#!\"'%,:;<=>@_` nrtf")
_TOKEN = re.compile(
    r"""\\Q(?P<quoted>.*?)(?:\\E|$)
      | \\x\{(?P<code>[0-9A-Fa-f]{1,6})\}
      | \\(?P<not>[pP])\{(?P<posix>[^}]*)\}
      | \\k<(?P<again>[A-Za-z][A-Za-z0-9]*)>
      | (?P<plain>\\(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[1-9]))
      | \\(?P<escape>.)
      | \(\?<(?P<group>[A-Za-z][A-Za-z0-9]*)>
      | (?P<flags>\(\?[a-zA-Z-]+\))
      | (?P<and>&&)
      | (?P<char>.)""",
    re.VERBOSE | re.DOTALL,
)


def split_list(text: str) -> list[str]:
    r"""Return the expressions of a list, as Debezium splits it: at commas, but not at those behind a backslash.

    >>> split_list(r"public\.a, public.b{1\,2},")
    ['public\\.a', 'public.b{1,2}']
    """
    parts = re.findall(r"(?:\\.|[^,\\])*(?:,|$|\\$)", text, re.DOTALL)
    items = [part.removesuffix(",").strip().replace("\\,", ",") for part in parts]
    return [item for item in items if item]


def expressions(text: str, *, split: bool = True) -> list[str]:
    """Return the expressions of a list of Java's in Python's.

    Raises:
        DeclarationError: Java would refuse one, or Python cannot mean it.
    """
    return [python_expression(item) for item in (split_list(text) if split else [text])]


def python_expression(java: str) -> str:
    r"""Return a Java expression in Python's: the same matches, letters being ASCII where Java's are.

    Raises:
        DeclarationError: Java would refuse it, or Python cannot mean it.

    >>> python_expression(r"public\.\Qa.b\E_(?<n>\d++)"), python_expression(r"[\p{Alpha}_]+")
    ('(?a:public\\.a\\.b_(?P<n>\\d++))', '(?a:[a-zA-Z_]+)')
    """
    try:
        translated = "".join(_translated(java))
        found = f"(?a:{translated})"
        re.compile(found, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise DeclarationError(f"«{java}» is no regular expression: {error}") from error
    return found


def readable(pattern: str) -> str:
    r"""Return a pattern as people wrote it, where it is one that was translated.

    >>> readable(python_expression(r"public\.a")), readable("public.b")
    ('public\\.a', 'public.b')
    """
    return pattern[4:-1] if pattern.startswith("(?a:") and pattern.endswith(")") else pattern


def _refused(java: str, what: str) -> DeclarationError:
    return DeclarationError(
        f"«{java}» has {what}, which Python's regular expressions cannot mean", advice="Write it in another way."
    )


def _translated(java: str) -> Iterator[str]:
    at, inside, first = 0, False, False
    while at < len(java):
        found = _TOKEN.match(java, at)
        assert found is not None
        if found["char"] is not None:
            char, opens = found["char"], found["char"] == "[" and not inside
            _check_char(java, found, inside=inside, first=first)
            if opens:
                at, first, inside = at + 1, True, True
                yield "["
                if java[at : at + 1] == "^":
                    at += 1
                    yield "^"
                continue
            if char == "]" and inside and not first:
                inside = False
            yield char
        else:
            yield _token(java, found, inside=inside, start=at == 0)
        first = False
        at = found.end()


def _check_char(java: str, found: re.Match[str], *, inside: bool, first: bool) -> None:
    """Refuse what Java reads otherwise than Python, or not at all."""
    char, at = found["char"], found.start()
    if inside and char == "[":
        raise _refused(java, "a class inside a class")
    if inside and char == "]" and first:
        raise DeclarationError(f"«{java}» is no regular expression: an empty class [] at {at}")
    if not inside and char == "{" and not re.match(r"\{\d+(,\d*)?\}", java[at:]):
        raise DeclarationError(f"«{java}» is no regular expression: a {{ at {at} that is no repetition; write \\{{")
    if not inside and java.startswith("(?P", at):
        raise DeclarationError(f"«{java}» is no regular expression of Java's: write (?<name>…) for (?P<name>…)")


def _token(java: str, found: re.Match[str], *, inside: bool, start: bool) -> str:
    if found["quoted"] is not None:
        return re.escape(found["quoted"])
    if found["code"] is not None:
        return re.escape(chr(int(found["code"], 16)))
    if found["posix"] is not None:
        return _posix(java, found, inside=inside)
    if found["again"] is not None:
        return f"(?P={found['again']})"
    if found["group"] is not None:
        return f"(?P<{found['group']}>" if not inside else found[0]
    if found["flags"] is not None and not inside:
        # Names match whatever the case: (?i) at the beginning says what is so anyway.
        if start and found["flags"] == "(?i)":
            return ""
        raise _refused(java, f"the flags {found['flags']}")
    if found["and"] is not None and inside:
        raise _refused(java, "an intersection of classes")
    if found["escape"] is not None:
        return _escape(java, found["escape"], inside=inside)
    return found[0]


def _posix(java: str, found: re.Match[str], *, inside: bool) -> str:
    name, negated = found["posix"], found["not"] == "P"
    if name not in _POSIX or (inside and negated):
        raise _refused(java, found[0])
    return _POSIX[name] if inside else f"[{'^' if negated else ''}{_POSIX[name]}]"


def _escape(java: str, char: str, *, inside: bool) -> str:
    if char == "z":
        return r"\Z"
    if char == "Z":
        return r"(?=\n?\Z)"
    if char == "e":
        return r"\x1b"
    if char == "a":
        return r"\x07"
    if char in "hv":
        own = _BLANK if char == "h" else _LINE
        return own if inside else f"[{own}]"
    if char in _SAME or not char.isalnum():
        return re.escape(char) if not char.isalnum() else f"\\{char}"
    raise _refused(java, f"\\{char}")
