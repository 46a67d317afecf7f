"""Objects that only a pickle can hold, signed: what this installation wrote, it reads again; the rest it refuses."""

from __future__ import annotations

import pickle
from typing import Any

from headrace.errors import LearnError
from headrace.learn.adapters import canonical_pickle
from headrace.learn.adapters.installation_key import is_ours, signature

_PURPOSE = "sealed"
_SIGNATURE = 64


def sealed(value: Any) -> bytes:
    """A signature, then a pickle: equal values give equal bytes.

    >>> unsealed(sealed([1, 2]))
    [1, 2]
    """
    data = canonical_pickle.dumps(value)
    return signature(_PURPOSE, data).encode() + data


def unsealed(data: bytes) -> Any:
    """The inverse of `sealed`.

    Raises:
        LearnError: another installation wrote it, or nobody did.
    """
    signed, rest = data[:_SIGNATURE], data[_SIGNATURE:]
    if not is_ours(_PURPOSE, rest, signed.decode("ascii", "replace")):
        raise LearnError(
            "a detector's stored state was not written by this installation",
            advice="Take the installation's key along (HEADRACE_KEY_FILE), or learn again from the log.",
        )
    return pickle.loads(rest)
