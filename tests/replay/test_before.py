"""A log that an earlier Headrace wrote: it opens, verifies and goes on."""

from __future__ import annotations

import gzip
from pathlib import Path

from headrace.formats.topic_formats import codec_for
from headrace.log import open_log
from headrace.replay.verify import Report, verify

from .pipeline_of_before import build, measure

WRITTEN = Path(__file__).with_name("log_of_before.headrace.gz")


def report(path: Path) -> Report:
    log = open_log(path, writer=False, codec=codec_for())
    try:
        return verify(build(path).plan(), log)
    finally:
        log.close()


def test_a_log_of_before_opens_verifies_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "before.headrace"
    path.write_bytes(gzip.decompress(WRITTEN.read_bytes()))
    # Bits are compared where machine and libraries are those that wrote it; rows can be read anywhere.
    assert report(path).result in ("equal", "not comparable"), report(path)
    app = build(path)
    with app.start() as running:
        assert (running["weight"].learned, running["kind"].learned) == (12, 14)
        measure(running, 18, 18)
        assert (running["weight"].learned, running["kind"].learned) == (24, 35)
    # Predictions of before that no label met have expired since.
    assert app.topic("graded").read().to_arrow().column("status").to_pylist().count("graded") == 24
    assert app.topic("kinds").read().to_arrow().column("id").to_pylist() == list(range(36))
    assert report(path).result in ("equal", "not comparable"), report(path)
