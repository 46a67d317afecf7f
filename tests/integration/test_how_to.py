"""How-to pages, followed with the shop of the tutorial: its file, and its table with sixty orders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.databases import Database
from tests.walkthrough import Walkthrough, blocks_of, typed_in

DOCS = Path(__file__).parents[2] / "docs"
SHOP = DOCS / "tutorials" / "shop.md"


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Path:
    """A directory with the pipeline of the tutorial, and its table in a database."""
    blocks = blocks_of(SHOP.read_text())
    (file,) = (block.body for block in blocks if block.caption == "shop.py")
    (tmp_path / "shop.py").write_text(file)
    statements = [typed.command for block in blocks[:2] for typed in typed_in(block.body) if "-q -c" in typed.command]
    assert len(statements) == 2
    for statement in statements:
        database.execute(statement.partition('-c "')[2].removesuffix('"'))
    return tmp_path


@pytest.mark.parametrize("page", ["add-a-column", "back-up"])
def test_the_page_can_be_followed(page: str, shop: Path, database: Database) -> None:
    given = {"PostgreSQL": {"POSTGRES": database.dsn}}
    with Walkthrough(DOCS / "how-to" / f"{page}.md", shop, given=given) as walkthrough:
        walkthrough.follow()
