"""What else goes wrong under a running pipeline: the database dies, the disk fills, the log's file is damaged."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import LogCorrupt, LogError
from headrace.testing.servers import postgres
from tests.waiting import wait_until

from . import harness
from .harness import write
from .pipeline import build


@pytest.mark.parametrize("way", [pytest.param("immediate", marks=pytest.mark.slow), "kill"])
def test_a_database_that_dies_in_the_middle_comes_back(tmp_path: Path, way: str) -> None:
    with postgres() as server:
        dsn = harness.database(server).dsn
        harness.run(dsn, tmp_path / "whole.headrace", name="whole")
        app = build(dsn, tmp_path / "shaken.headrace", "shaken")
        with app.start() as running:
            for seed in range(2):
                write(dsn, seed, 40)
                if way == "kill":
                    server.kill()
                else:
                    server.stop("immediate")
                wait_until(lambda: "again" in running.status, "noticing that the database is gone")
                server.start()
                write(dsn, seed + 10, 40)
                running.wait(60)
        harness.run(dsn, tmp_path / "whole.headrace", name="whole")
        assert harness.contents(tmp_path / "shaken.headrace") == harness.contents(tmp_path / "whole.headrace")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_stops_nothing_but_time(dsn: str, tmp_path: Path, small_disk: Path) -> None:
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    app = build(dsn, small_disk / "full.headrace", "full")
    with app.start() as running:
        seed = 0
        while "disk space" not in running.status:
            write(dsn, seed, 60)
            seed += 1
            assert seed < 60, "the disk never filled"
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        write(dsn, 100, 40)
        running.wait(60)
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    assert harness.contents(small_disk / "full.headrace") == harness.contents(tmp_path / "whole.headrace")


def test_a_damaged_log_is_said_not_read(dsn: str, tmp_path: Path) -> None:
    harness.run(dsn, tmp_path / "good.headrace", name="good")
    write(dsn, 1, 200)
    harness.run(dsn, tmp_path / "good.headrace", name="good")
    size = (tmp_path / "good.headrace").stat().st_size
    found = 0
    for number, place in enumerate(range(8192, size, max(4096, size // 12))):
        copy = tmp_path / f"bad{number}.headrace"
        shutil.copy(tmp_path / "good.headrace", copy)
        with copy.open("r+b") as file:
            file.seek(place)
            file.write(os.urandom(2048))
        with contextlib.suppress(LogError):
            harness.contents(copy)
            continue
        found += 1
    assert found, "no damage was noticed"
    cut = tmp_path / "cut.headrace"
    cut.write_bytes((tmp_path / "good.headrace").read_bytes()[: size // 2])
    with pytest.raises(LogCorrupt):
        harness.contents(cut)
