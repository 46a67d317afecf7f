"""The page «Coming from Debezium and Kafka», followed: its shell blocks, in their order, in an empty directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.testing.servers import JavaMissing, KafkaBroker, postgres_binaries

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-debezium-and-kafka.md"
pytestmark = [pytest.mark.xdist_group("kafka"), pytest.mark.slow]


def test_the_page_can_be_followed(tmp_path: Path) -> None:
    try:
        KafkaBroker(tmp_path / "never started")
    except JavaMissing as error:
        pytest.skip(str(error))
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8
    # Whatever happens in between: the servers end with the shell.
    script = "\n".join(["set -eu", "trap 'kill ${RUN:-} ${SERVERS:-} 2> /dev/null || true' EXIT", *blocks])
    folders = [str(Path(sys.executable).parent), os.environ["PATH"], str(postgres_binaries())]
    directory = tmp_path / "empty"
    directory.mkdir()
    with (tmp_path / "output.txt").open("w+") as output:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=directory,
            env={**os.environ, "PATH": ":".join(folders)},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=150,
            check=False,
        )
        output.seek(0)
        said = output.read()
    assert done.returncode == 0, said
    assert said.count('"status": "ok"') == 11
    assert len(re.findall(r"^equal$", said, re.MULTILINE)) == 2
    assert "Traceback" not in said + (directory / "run.txt").read_text()
