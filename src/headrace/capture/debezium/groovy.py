"""Simple expressions of Groovy and JavaScript as SQL: what Debezium's Filter and ContentBasedRouter have.

Nothing is run that was translated: a person reads it, and writes it into the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\$]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<regex>/(?:[^/\\\n]|\\.)+/)
      | (?P<number>\d+(?:\.\d+)?)[lLfFdDgG]?
      | (?P<name>[A-Za-z_]\w*)
      | (?P<operator>==~|=~|===|!==|==|!=|<=|>=|&&|\|\||\?\.|\?:|[-+*/%<>!().,?:\[\]])
      | (?P<blank>\s+|;\s*$)""",
    re.VERBOSE,
)
_METHODS = {
    "startsWith": "starts_with",
    "endsWith": "ends_with",
    "contains": "contains",
    "includes": "contains",
    "toLowerCase": "lower",
    "toUpperCase": "upper",
    "trim": "trim",
    "length": "length",
    "matches": "regexp_full_match",
}
_PATH = r"(?:\"[^\"]+\"|\w+)(?:\.(?:\"[^\"]+\"|\w+))*"
_SAME = {"&&": "AND", "||": "OR", "==": "=", "===": "=", "!=": "<>", "!==": "<>", "?.": "."}


def as_sql(expression: str) -> str:
    """Return an expression of Groovy or JavaScript in SQL; nothing where it is not simple enough.

    >>> as_sql("value.op == 'u' && value.before?.id != null")
    "value.op = 'u' AND value.before.id IS NOT NULL"
    >>> as_sql("topic.startsWith('a') ? 'b' : null"), as_sql("value.each { it }")
    ("CASE WHEN starts_with(topic, 'a') THEN 'b' ELSE NULL END", '')
    """
    tokens = _tokens(expression)
    if tokens is None:
        return ""
    text = " ".join(tokens)
    text = re.sub(r"\s*\.\s*", ".", text)
    text = re.sub(r"\(\s+", "(", re.sub(r"\s+([),])", r"\1", text))
    for method, function in _METHODS.items():
        text = re.sub(rf"({_PATH})\.{method} ?\((?:([^()]+))?\)", _call(function), text)
    text = re.sub(rf"({_PATH}) ?==~ ?('(?:[^']|'')*')", r"regexp_full_match(\1, \2)", text)
    text = re.sub(r"= NULL\b", "IS NULL", text).replace("<> NULL", "IS NOT NULL")
    text = re.sub(r"\bin \[([^\]]*)\]", r"IN (\1)", text).replace("( ", "(").replace(" )", ")")
    choice = re.fullmatch(r"([^?]+?) \? ([^?:]+?) : ([^?]+)", text)
    if choice is not None:
        text = f"CASE WHEN {choice[1]} THEN {choice[2]} ELSE {choice[3]} END"
    left = re.search(r"==~|=~|\?|:|\[|\]|\w\.\w+ ?\(", text)
    return "" if left else text.strip()


def _call(function: str) -> Callable[[re.Match[str]], str]:
    def made(found: re.Match[str]) -> str:
        return f"{function}({found[1]}, {found[2].strip()})" if found[2] else f"{function}({found[1]})"

    return made


def _tokens(expression: str) -> list[str] | None:
    """Return an expression's words in SQL; None where one has no counterpart."""
    found, at = [], 0
    while at < len(expression):
        token = _TOKEN.match(expression, at)
        if token is None:
            return None
        at = token.end()
        if token["text"] is not None:
            plain = re.sub(r"\\(.)", r"\1", token["text"][1:-1]).replace("'", "''")
            found.append(f"'{plain}'")
        elif token["regex"] is not None:
            inside = token["regex"][1:-1].replace("\\/", "/").replace("'", "''")
            found.append(f"'{inside}'")
        elif token["number"] is not None:
            found.append(token["number"])
        elif token["name"] is not None:
            found.append({"null": "NULL", "true": "TRUE", "false": "FALSE"}.get(token["name"], token["name"]))
        elif token["operator"] is not None:
            if token["operator"] == "?:":
                return None
            found.append({**_SAME, "!": "NOT"}.get(token["operator"], token["operator"]))
    return found
