"""The jars of a job: ours, and Flink's connector for Kafka."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from headrace.errors import DeclarationError

OURS = Path(__file__).with_name("headrace-flink.jar")
SOURCES = Path(__file__).with_name("java")
CONNECTOR = "flink-sql-connector-kafka"
CONNECTOR_VERSION = "5.0.0-2.2"
URL = f"https://repo1.maven.org/maven2/org/apache/flink/{CONNECTOR}/{CONNECTOR_VERSION}"
RELEASE = "17"  # of Java: Flink 2 runs on 17 and 21
JARS = "pipeline.jars"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def job_jars(conf: Mapping[str, str], places: Iterable[Path]) -> list[Path]:
    """Return our jar and the connector's.

    Args:
        conf: Flink's options; those that ``pipeline.jars`` names are taken too.
        places: folders in which the connector may lie.

    Raises:
        DeclarationError: the connector is nowhere.
    """
    named = [Path(jar.removeprefix("file://")) for jar in conf.get(JARS, "").split(";") if jar]
    if any(jar.name.startswith(CONNECTOR) for jar in named):
        return [OURS, *named]
    looked = [*places, cache()]
    found = [jar for place in looked for jar in sorted(place.glob(f"**/{CONNECTOR}-*.jar"), reverse=True)]
    if not found:
        raise DeclarationError(
            f"Flink's connector for Kafka ({CONNECTOR}-{CONNECTOR_VERSION}.jar) is not on this machine",
            advice=f"Fetch {URL}/{CONNECTOR}-{CONNECTOR_VERSION}.jar into {looked[0]}, or name it in the option "
            f"{JARS}, as file:///path/of.jar.",
        )
    return [OURS, *named, found[0]]


def cache() -> Path:
    """Return the folder in which jars that were fetched for tests and demos are kept."""
    chosen = os.environ.get("HEADRACE_CACHE")
    root = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "headrace"
    return root / "jars"


def build(classpath: Iterable[Path], to: Path = OURS, javac: str = "javac") -> None:
    """Compile our classes into a jar whose bytes depend on the sources and the compiler alone.

    Raises:
        subprocess.CalledProcessError: the compiler refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        sources = [str(path) for path in sorted(SOURCES.rglob("*.java"))]
        where = ["-cp", os.pathsep.join(map(str, classpath)), "-d", folder]
        subprocess.run([javac, "--release", RELEASE, "-g:none", "-Xlint:all,-classfile", *where, *sources], check=True)
        with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as jar:
            for path in sorted(Path(folder).rglob("*.class")):
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                jar.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    import pyflink

    libraries = Path(pyflink.__file__).parent / "lib"
    build([*libraries.glob("*.jar"), *job_jars({}, [libraries])])
    sys.stdout.write(f"{OURS}: {OURS.stat().st_size:,} bytes\n")
