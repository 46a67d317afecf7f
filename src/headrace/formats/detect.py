"""Which format the messages of a topic are in, told by looking at some of them."""

from __future__ import annotations

from headrace.wire import WireMessages

_REGISTRY_HEADERS = ("apicurio.value.globalId", "apicurio.value.contentId")
_ARROW_STREAM = b"\xff\xff\xff\xff"


def detect(messages: WireMessages) -> str:
    r"""The name of the format: «registry», «arrow», «json», «string» or «bytes»; empty where no message says.

    «registry» means values that begin with the id of a schema (https://docs.confluent.io/platform/current/
    schema-registry/fundamentals/serdes-develop/index.html#wire-format); which serialisation it is the registry knows.
    All values have to agree; where they do not, the widest that holds them all is the answer.

    >>> import numpy as np
    >>> def of(*values): return detect(WireMessages("t", values, offsets=np.arange(len(values))))
    >>> of(b'{"a": 1}'), of(b"\0\0\0\0\7x"), of(b"\xff\xff\xff\xff\0"), of(b"hello"), of(b"\xfe"), of(None, b"")
    ('json', 'registry', 'arrow', 'string', 'bytes', '')
    """
    found = {_one(value) for value in messages.values if value}
    if not found:
        return ""
    if found <= {"string", "json", "bytes"} and any(
        name in _REGISTRY_HEADERS for headers in messages.headers for name, _ in headers
    ):
        return "registry"
    if len(found) == 1:
        return found.pop()
    return "string" if found == {"json", "string"} else "bytes"


def _one(value: bytes) -> str:
    if value[:1] == b"\0" and len(value) >= 5:
        return "registry"
    if value[:4] == _ARROW_STREAM:
        return "arrow"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return "bytes"
    return "json" if text.lstrip()[:1] == "{" and text.rstrip()[-1:] == "}" else "string"
