"""A server that speaks MongoDB's protocol: mongo-java-server, in memory.

It has no transactions and no change streams, and forgets everything when it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

from headrace.testing.servers.jars import jars
from headrace.testing.servers.java import JavaMissing, JavaServer, listens

# pymongo 4.20 refuses servers that say they are older.
MAIN = """\
import de.bwaldvogel.mongo.*;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import java.util.List;

public class Main {
    public static void main(String[] arguments) {
        MongoVersion version = new MongoVersion() {
            public List<Integer> getVersionArray() { return List.of(4, 4, 0); }
            public int getWireVersion() { return 9; }
        };
        MongoBackend backend = new MemoryBackend().version(version);
        new MongoServer(backend).bind("127.0.0.1", Integer.parseInt(arguments[0]));
    }
}
"""


class MongoDbServer(JavaServer):
    """One mongo-java-server on loopback.

    Args:
        directory: where its log goes. A temporary one by default.
        heap: the most that Java's heap may take.
        port: where it listens; a free one by default.

    Raises:
        JavaMissing: there is no Java, or one without its compiler.

    >>> with MongoDbServer() as server:  # doctest: +SKIP
    ...     server.uri
    'mongodb://127.0.0.1:40213'
    """

    name: ClassVar[str] = "mongo"
    heap = "128m"

    @property
    def uri(self) -> str:
        """The connection string, as clients call it."""
        return f"mongodb://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        if not self.java.resolve().with_name("javac").exists():
            raise JavaMissing(f"{self.java} has no compiler", advice="apt-get install openjdk-17-jdk-headless")
        (self.directory / "Main.java").write_text(MAIN)

    def _arguments(self) -> list[str]:
        return ["-cp", f"{jars('mongo')}/*", "Main.java", str(self.port)]

    def _answers(self) -> bool:
        return listens(self.port)


@contextlib.contextmanager
def mongo_server(**options: Any) -> Iterator[str]:
    """A server in a temporary directory, removed at the end: its connection string.

    Takes what `MongoDbServer` takes; use that class itself to kill and restart it.
    """
    with MongoDbServer(**options) as server:
        yield server.uri
