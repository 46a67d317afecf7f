"""The tutorials, followed: what they say is typed, in their order, in an empty directory, and shows what they show."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.testing.servers import KafkaBroker
from tests.walkthrough import Walkthrough, unexecuted

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
PAGES = sorted(TUTORIALS.glob("*.md"))
WITHOUT_KAFKA = [page for page in PAGES if page.stem != "kafka-topics"]


@pytest.mark.parametrize("page", WITHOUT_KAFKA, ids=lambda page: page.stem)
def test_the_tutorial_can_be_followed(page: Path, tmp_path: Path) -> None:
    with Walkthrough(page, tmp_path) as walkthrough:
        walkthrough.follow()


@pytest.mark.slow
def test_the_tutorial_with_kafka_can_be_followed(broker: KafkaBroker, tmp_path: Path) -> None:
    """Its topics are there, as the broker's administrator would have made them: this one makes none by itself."""
    given = {"The broker": {"KAFKA": broker.bootstrap}}
    for topic in ("payments", "reviews"):
        broker.create_topic(topic)
    with Walkthrough(TUTORIALS / "kafka-topics.md", tmp_path, given=given) as walkthrough:
        walkthrough.follow()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_whole_tutorial_can_be_followed(page: Path, tmp_path: Path) -> None:
    """With the blocks that take long, and servers as the page starts them."""
    with Walkthrough(page, tmp_path, slow=True) as walkthrough:
        walkthrough.follow()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run(page: Path) -> None:
    """A command or a program in a tutorial stands in a terminal, or is a file."""
    assert not list(unexecuted(page.read_text()))
