"""Fetch the jars of all servers ahead of the tests: ``python -m headrace.testing.servers.fetch``, or ``make jars``."""

from __future__ import annotations

from headrace.testing.servers.jars import PINNED, cache, jars, place
from headrace.testing.servers.java import JavaMissing, java


def main() -> None:
    """Say in one line what is there, what is fetched, or why it cannot be; that last one is exit code 1."""
    try:
        java()
        wanted = [name for name, content in PINNED.items() if not getattr(content, "asked", False)]
        missing = [name for name in wanted if not place(name).exists()]
        if missing:
            print(f"fetching {', '.join(missing)} with Maven into {cache()} …", flush=True)
        for name in missing:
            jars(name)
    except JavaMissing as error:
        raise SystemExit(f"tests with Kafka will be skipped: {error.message}") from None
    if not missing:
        print(f"Kafka, Connect, Debezium and the schema registry are in {cache()}")


if __name__ == "__main__":
    main()
