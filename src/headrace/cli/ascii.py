"""Output for terminals and files whose encoding lacks our punctuation: ASCII takes its place, and nothing fails."""

from __future__ import annotations

import codecs
from typing import TextIO

ESCAPED = "headrace.escaped"
SPELLED = "headrace.spelled"
SPELLING = {
    "«": '"', "»": '"', "→": "->", "…": "...", "–": "-", "—": "-", "·": "-", "×": "x", "✓": "+", "✗": "x", "≤": "<=",
    "█": "#", "▀": "'", "▄": ".", "━": "-", "─": "-", "│": "|", "╸": "-", "╺": "-", "●": "o", "•": "o",
}  # fmt: skip


def escape(text: str) -> str:
    r"""Return characters as JSON escapes them.

    >>> escape("ä🐟")
    '\\u00e4\\ud83d\\udc1f'
    """
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks as JSON does: data on standard output is JSON, and stays valid."""
    assert isinstance(error, UnicodeEncodeError)
    return escape(error.object[error.start : error.end]), error.end


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks with other characters, where there are some that mean the same to people."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(SPELLING.get(character) or escape(character) for character in lacking), error.end


def spelled(text: str, encoding: str | None) -> str:
    """Return a text for people as an encoding can hold it.

    >>> spelled("«a» → b…", "ascii")
    '"a" -> b...'
    """
    name = encoding or "ascii"
    return text.encode(name, SPELLED).decode(name)


def fall_back_to_ascii(data: TextIO, talk: TextIO) -> None:
    """Let two streams take every character, whatever their encoding: one for programs, one for people."""
    _set_errors(data, ESCAPED)
    spell(talk)


def spell(stream: TextIO) -> None:
    """Let a stream that is for people take every character."""
    _set_errors(stream, SPELLED)


def _set_errors(stream: TextIO, handler: str) -> None:
    reconfigure = getattr(stream, "reconfigure", None)  # what a test has put in its place may have none
    if reconfigure is not None:
        reconfigure(errors=handler)


codecs.register_error(ESCAPED, _escaped)
codecs.register_error(SPELLED, _spelled)
