"""What Java makes of values: hashes, dates by a pattern, replacements of regular expressions."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from decimal import Decimal

_M64 = (1 << 64) - 1
_DAY_MS = 86_400_000
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_DAYS = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"]  # 1970-01-01 was a Thursday


# -- hashes -----------------------------------------------------------------------------------------------------------


def hash_code(value: object, kind: str) -> int:
    """Return ``Object.hashCode`` of a value of a type of Kafka Connect, as 32 bits with a sign.

    Raises:
        ValueError: Java's is another one each time, or of the value's parts.

    >>> hash_code("hello", "string"), hash_code(-1, "int64"), hash_code(True, "boolean")
    (99162322, 0, 1231)
    """
    if isinstance(value, bool):
        return 1231 if value else 1237
    if isinstance(value, str):
        found = 0
        units = value.encode("utf-16-be", "surrogatepass")
        for unit in struct.unpack(f">{len(units) // 2}H", units):
            found = (found * 31 + unit) & 0xFFFFFFFF
        return _signed(found, 32)
    if isinstance(value, Decimal):
        sign, digits, exponent = value.as_tuple()
        unscaled = int("".join(map(str, digits))) * (-1 if sign else 1)
        return _signed((31 * _big_integer_hash(unscaled) + -int(exponent)) & 0xFFFFFFFF, 32)
    if kind == "int64" and isinstance(value, int):
        bits = value & _M64
        return _signed((bits ^ bits >> 32) & 0xFFFFFFFF, 32)
    if kind in ("int8", "int16", "int32") and isinstance(value, int):
        return value
    if kind == "float" and isinstance(value, int | float):
        return int(struct.unpack(">i", struct.pack(">f", value))[0])
    if kind == "double" and isinstance(value, int | float):
        (bits,) = struct.unpack(">Q", struct.pack(">d", value))
        return _signed((bits ^ bits >> 32) & 0xFFFFFFFF, 32)
    raise ValueError(f"a value of type {kind} has no hash that is the same each time")


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number


def _big_integer_hash(number: int) -> int:
    found, magnitude = 0, abs(number)
    for shift in reversed(range(0, max(1, magnitude.bit_length()), 32)):
        found = (31 * found + (magnitude >> shift & 0xFFFFFFFF)) & 0xFFFFFFFF
    return found * (-1 if number < 0 else 1)


class _Murmur:
    """The state of Infinispan's MurmurHash3, whose constants move with each block."""

    def __init__(self, seed: int) -> None:
        self.h1, self.h2 = 0x9368E53C2F6AF274 ^ seed, 0x586DCD208F7CD3FD ^ seed
        self.c1, self.c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

    def mix(self, k1: int, k2: int) -> None:
        k1 = _rotated(k1 * self.c1 & _M64, 23) * self.c2 & _M64
        self.h1 = ((self.h1 ^ k1) + self.h2) & _M64
        self.h2 = _rotated(self.h2, 41)
        k2 = _rotated(k2 * self.c2 & _M64, 23) * self.c1 & _M64
        self.h2 = ((self.h2 ^ k2) + self.h1) & _M64
        self.h1 = (self.h1 * 3 + 0x52DCE729) & _M64
        self.h2 = (self.h2 * 3 + 0x38495AB5) & _M64
        self.c1 = (self.c1 * 5 + 0x7B7D159C) & _M64
        self.c2 = (self.c2 * 5 + 0x6BCE6396) & _M64


def _rotated(number: int, bits: int) -> int:
    return (number << bits | number >> (64 - bits)) & _M64


def _final(k: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        k = (k ^ k >> 33) * factor & _M64
    return k ^ k >> 33


def murmur(value: object, kind: str) -> int:
    """Return Debezium's ``MurmurHash3.hash``: of a text's UTF-8, of anything else's `hash_code`."""
    text = isinstance(value, str)
    payload = str(value).encode("utf-8", "replace") if text else struct.pack("<i", hash_code(value, kind))
    state = _Murmur(9001)
    whole = len(payload) & ~15
    for at in range(0, whole, 16):
        state.mix(*struct.unpack_from("<QQ", payload, at))
    tail = payload[whole:]
    if tail:
        state.mix(_tail(tail[:8]), _tail(tail[8:]))
    h1, h2 = state.h1, state.h2 ^ len(payload)
    h1 = (h1 + h2) & _M64
    h2 = (h2 + h1) & _M64
    h1, h2 = _final(h1), _final(h2)
    return _signed((h1 + h2) & _M64, 64) >> 32


def _tail(part: bytes) -> int:
    """Return the last block, whose bytes keep their sign."""
    found = 0
    for at, byte in enumerate(part):
        found ^= _signed(byte, 8) << 8 * at & _M64
    return found & _M64


# -- replacements -----------------------------------------------------------------------------------------------------


def replacer(pattern: str, replacement: str) -> Callable[[str], str | None]:
    r"""Return what makes of a text that matches as a whole another one, as Java's ``replaceFirst``; None of others.

    Raises:
        ValueError: the replacement names a group that there is not.

    >>> replacer("(.*)_(?P<n>[0-9]+)", r"$1-${n}\$")("a_1")
    'a-1$'
    """
    compiled = re.compile(pattern)
    parts: list[str | int] = []
    at = 0
    while at < len(replacement):
        if replacement[at] == "\\" and at + 1 < len(replacement):
            parts.append(replacement[at + 1])
            at += 2
        elif replacement[at] == "$":
            at, group = _group(compiled, replacement, at + 1)
            parts.append(group)
        else:
            parts.append(replacement[at])
            at += 1

    def filled(found: re.Match[str]) -> str:
        return "".join(part if isinstance(part, str) else found[part] or "" for part in parts)

    return lambda text: compiled.sub(filled, text, count=1) if compiled.fullmatch(text) else None


def _group(compiled: re.Pattern[str], replacement: str, at: int) -> tuple[int, int]:
    """Return where a reference to a group ends, and the group's number: as many digits as make one that is there."""
    named = re.compile(r"\{([A-Za-z][A-Za-z0-9]*)\}").match(replacement, at)
    if named is not None:
        if named[1] not in compiled.groupindex:
            raise ValueError(f"there is no group «{named[1]}»")
        return named.end(), compiled.groupindex[named[1]]
    digits = re.compile(r"[0-9]+").match(replacement, at)
    if digits is None:
        raise ValueError("a $ in the replacement names no group; write \\$")
    length = len(digits[0])
    while length > 1 and int(digits[0][:length]) > compiled.groups:
        length -= 1
    number = int(digits[0][:length])
    if number > compiled.groups:
        raise ValueError(f"there is no group {number}")
    return at + length, number


# -- dates ------------------------------------------------------------------------------------------------------------

_PIECE = re.compile(r"'((?:[^']|'')*)'|([A-Za-z])\2*|[^A-Za-z']+")


def _pieces(pattern: str) -> list[tuple[str, str]]:
    """Return (letter, text) of a `SimpleDateFormat`; no letter of what stands as it is.

    Raises:
        ValueError: it has a letter that is not understood here.
    """
    found, end = [], 0
    for piece in _PIECE.finditer(pattern):
        if piece.start() != end:
            break
        end = piece.end()
        letter = piece[2] or ""
        if letter and letter not in "yuMdHhkKmsSaEDzZX":
            raise ValueError(f"the letter {letter} of «{pattern}» is not understood")
        text = piece[0] if letter or piece[1] is None else (piece[1].replace("''", "'") or "'")
        found.append((letter, text))
    if end != len(pattern):
        raise ValueError(f"«{pattern}» has a quote that does not end")
    return found


def date_printer(pattern: str) -> Callable[[int], str]:
    """Return what prints milliseconds since 1970 in UTC as Java's `SimpleDateFormat` does.

    >>> date_printer("yyyy-MM-dd'T'HH:mm:ss.SSSX")(1)
    '1970-01-01T00:00:00.001Z'
    """
    pieces = _pieces(pattern)

    def printed(ms: int) -> str:
        days, rest = divmod(ms, _DAY_MS)
        year, month, day = gregorian(days)
        return "".join(
            _printed(letter, text, (year, month, day), days, rest) if letter else text for letter, text in pieces
        )

    return printed


def gregorian(days: int) -> tuple[int, int, int]:
    """Return (year, month, day) of days since 1970, before October 1582 by the Julian calendar as Java has it.

    >>> gregorian(0), gregorian(-141428), gregorian(-141427)
    ((1970, 1, 1), (1582, 10, 4), (1582, 10, 15))
    """
    julian_day = days + 2_440_588
    if days < -141_427:
        c = julian_day + 32_082
    else:
        a = julian_day + 32_044
        b = (4 * a + 3) // 146_097
        c = a - 146_097 * b // 4
    d = (4 * c + 3) // 1461
    e = c - 1461 * d // 4
    m = (5 * e + 2) // 153
    year = d - 4800 + m // 10 + (100 * b if days >= -141_427 else 0)
    return year, m + 3 - 12 * (m // 10), e - (153 * m + 2) // 5 + 1


def _printed(letter: str, text: str, date: tuple[int, int, int], days: int, rest: int) -> str:
    year, month, day = date
    width = len(text)
    era_year = year if year > 0 else 1 - year
    if letter == "y":
        return f"{era_year % 100:02d}" if width == 2 else f"{era_year:0{width}d}"
    if letter == "M" and width > 2:
        return _MONTHS[month - 1] if width > 3 else _MONTHS[month - 1][:3]
    if letter == "E":
        return _DAYS[days % 7] if width > 3 else _DAYS[days % 7][:3]
    if letter in "zZX":
        return {"z": "UTC", "Z": "+0000", "X": "Z"}[letter]
    hour = rest // 3_600_000
    if letter == "a":
        return "AM" if hour < 12 else "PM"
    numbers = {
        "M": month, "d": day, "H": hour, "h": (hour + 11) % 12 + 1, "k": (hour + 23) % 24 + 1, "K": hour % 12,
        "m": rest // 60_000 % 60, "s": rest // 1000 % 60, "S": rest % 1000,
        "u": (days + 3) % 7 + 1, "D": days - _days(year, 1, 1) + 1,
    }  # fmt: skip
    return f"{numbers[letter]:0{width}d}"


def _days(year: int, month: int, day: int) -> int:
    """Return the days since 1970 of a date."""
    y, m = year - (month <= 2), (month + 9) % 12
    julian = (year, month, day) < (1582, 10, 15)
    century = 2 - 2 if julian else y // 400 - y // 100
    return 365 * y + y // 4 + century + (153 * m + 2) // 5 + day - (719_471 if julian else 719_469)


def date_reader(pattern: str) -> Callable[[str], int]:
    """Return what reads a text as Java's `SimpleDateFormat` does, as milliseconds since 1970; what follows is ignored.

    >>> date_reader("yyyy-MM-dd HH:mm")("2024-02-29 12:00 and more")
    1709208000000
    """
    pieces = _pieces(pattern)
    expressions, letters = [], []
    for place, (letter, text) in enumerate(pieces):
        if not letter:
            expressions.append(re.escape(text))
            continue
        letters.append(letter)
        follows = place + 1 < len(pieces) and pieces[place + 1][0] not in ("", "a", "z", "X")
        expressions.append(_expression(letter, len(text), exact=follows))
    compiled = re.compile("".join(expressions), re.IGNORECASE)

    def read(text: str) -> int:
        found = compiled.match(text)
        if found is None:
            raise ValueError(f"Could not parse timestamp: value ({text}) does not match pattern ({pattern})")
        return _instant(dict(zip(letters, found.groups(), strict=True)), pattern)

    return read


def _expression(letter: str, width: int, *, exact: bool) -> str:
    if letter == "M" and width > 2:
        return "(" + "|".join([*_MONTHS, *(month[:3] for month in _MONTHS)]) + ")"
    if letter == "E":
        return "(" + "|".join([*_DAYS, *(day[:3] for day in _DAYS)]) + ")"
    if letter == "a":
        return "(AM|PM)"
    if letter in "zZX":
        return r"(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)"
    return rf"\s*(\d{{{width}}})" if exact else r"\s*(-?\d+)"


def _instant(found: dict[str, str], pattern: str) -> int:
    year = int(found.get("y", 1970))
    if "y" in found and len(found["y"]) == 2 and re.search(r"(?<!y)yy(?!y)", pattern):
        year += 2000 if year < 45 else 1900
    month_text = found.get("M", "1")
    month = (
        int(month_text)
        if month_text.lstrip("-").isdigit()
        else 1 + [m[:3] for m in _MONTHS].index(month_text[:3].title())
    )
    hour = int(found.get("H", found.get("K", 0)))
    if "h" in found:
        hour = int(found["h"]) % 12
    if "k" in found:
        hour = int(found["k"]) % 24
    if found.get("a", "").upper() == "PM":
        hour += 12
    days = _days(year + (month - 1) // 12, (month - 1) % 12 + 1, 1) + int(found.get("d", 1)) - 1
    minutes = hour * 60 + int(found.get("m", 0)) - next((_offset(found[z]) for z in "zZX" if z in found), 0)
    return days * _DAY_MS + minutes * 60_000 + int(found.get("s", 0)) * 1000 + int(found.get("S", 0))


def _offset(zone: str) -> int:
    """Return minutes east of Greenwich."""
    if zone[0] not in "+-":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    return (int(digits[:2]) * 60 + int(digits[2:])) * (-1 if zone[0] == "-" else 1)
