"""Real servers to try things with: ``python -m headrace.testing.servers kafka connect``.

They run until Ctrl-C or SIGTERM and are removed with everything in them. Their addresses are
printed as a shell's variables: POSTGRES, KAFKA, CONNECT, REGISTRY, MONGO, SPARK, FLINK.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading

from headrace.errors import HeadraceError
from headrace.testing.servers import (
    FlinkCluster,
    KafkaBroker,
    KafkaConnect,
    MongoDbServer,
    SchemaRegistryServer,
    SparkCluster,
    postgres,
)

SERVERS = ("postgres", "kafka", "connect", "registry", "mongo", "spark", "flink")


def main() -> None:
    """Start what is named, print the addresses, wait for a signal."""
    parser = argparse.ArgumentParser(prog="python -m headrace.testing.servers", description=__doc__)
    parser.add_argument("servers", nargs="+", choices=SERVERS, help="connect starts a broker too")
    parser.add_argument("--port", type=int, help="the broker's port; a free one by default")
    chosen = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with contextlib.ExitStack() as stack:
            _start(stack, set(chosen.servers), chosen.port)
            stop.wait()
    except HeadraceError as error:
        raise SystemExit(f"error: {error}") from None


def _start(stack: contextlib.ExitStack, names: set[str], port: int | None) -> None:
    if "postgres" in names:
        _say("postgres", stack.enter_context(postgres()).tcp_dsn)
    if names & {"kafka", "connect"}:
        # As the broker of Debezium's images: whoever writes to a topic makes it.
        broker = KafkaBroker(port=port, settings={"auto.create.topics.enable": "true"})
        _say("kafka", stack.enter_context(broker).bootstrap)
    if "connect" in names:
        _say("connect", stack.enter_context(KafkaConnect(broker.bootstrap)).url)
    if "registry" in names:
        _say("registry", stack.enter_context(SchemaRegistryServer()).url)
    if "mongo" in names:
        _say("mongo", stack.enter_context(MongoDbServer()).uri)
    if "spark" in names:
        _say("spark", stack.enter_context(SparkCluster()).place)
    if "flink" in names:
        _say("flink", stack.enter_context(FlinkCluster()).place)


def _say(name: str, address: str) -> None:
    print(f"export {name.upper()}='{address}'", flush=True)


if __name__ == "__main__":
    main()
