"""The cache of jars: complete or absent, filled once, whoever asks, and not by whom cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.testing.servers.jars import PINNED, jars, place
from headrace.testing.servers.java import JavaMissing

NAME = "debezium-postgres"  # the smallest
ASK = f"from headrace.testing.servers.jars import jars; print(jars({NAME!r}))"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the one of Maven itself stays."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jars"


def counting(folder: Path, real: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a Maven before the real one that writes a line for each time it is called, then calls it."""
    folder.mkdir()
    calls = folder / "calls"
    program = folder / "mvn"
    program.write_text(f'#!/bin/sh\necho "$$" >> {calls}\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return calls


def fake_maven(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Maven that fails."""
    folder.mkdir()
    program = folder / "mvn"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def maven() -> str:
    """The real Maven, when it can get what these tests ask for."""
    program = shutil.which("mvn")
    if program is None:
        pytest.skip("there is no Maven on PATH")
    try:
        jars(NAME)
    except JavaMissing as error:
        pytest.skip(str(error))
    return program


def test_two_processes_fetch_once(maven: str, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counting(tmp_path / "bin", maven, monkeypatch)
    both = [subprocess.Popen([sys.executable, "-c", ASK], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=200)[0].strip() for process in both]
    if any(process.returncode for process in both):
        pytest.skip("Maven gets nothing now")
    assert said == [str(place(NAME))] * 2
    assert len(calls.read_text().splitlines()) == 1
    assert list(place(NAME).glob("debezium-connector-postgres/*.jar"))
    # Nothing half-done is left beside it.
    assert [path.name for path in empty.iterdir() if path.is_dir()] == [place(NAME).name]


def test_what_a_killed_process_left_is_swept(maven: str, empty: Path) -> None:
    left = empty / f".{place(NAME).name}"
    (left / "unpacked").mkdir(parents=True)
    (left / "unpacked" / "half.jar").touch()
    try:
        folder = jars(NAME)
    except JavaMissing as error:
        pytest.skip(str(error))
    assert not left.exists()
    assert not list(folder.rglob("half.jar"))


def test_a_failure_leaves_the_cache_empty_and_says_why(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_maven(tmp_path / "bin", "echo '[ERROR] Could not transfer artifact: Unknown host'; exit 1", monkeypatch)
    with pytest.raises(JavaMissing, match=r"(?s)debezium-connector-postgres:3.*Unknown host.*make jars"):
        jars(NAME)
    assert not place(NAME).exists()


def test_the_fetch_of_the_makefile_says_so_too(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("java") is None:
        pytest.skip("there is no Java on PATH")
    fake_maven(tmp_path / "bin", "exit 1", monkeypatch)
    command = [sys.executable, "-m", "headrace.testing.servers.fetch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("fetching kafka, connect, ")
    assert done.stderr.startswith("tests with Kafka will be skipped: Maven cannot get ")


def test_other_versions_are_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = place("kafka")
    monkeypatch.setitem(PINNED, "kafka", PINNED["connect"])
    assert place("kafka") != before
    assert place("kafka").name.startswith("kafka-")
