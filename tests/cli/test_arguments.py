"""What the command line's arguments stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.cli.arguments import load_app
from headrace.errors import DeclarationError


def test_an_error_shows_the_lines_of_the_users_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shop.py").write_text('import headrace as hr\nhr.App("shop", log="shop.headrace").model("m", dict)\n')
    with pytest.raises(DeclarationError) as refused:
        load_app("shop.py")
    said = refused.value.message
    assert said.count(", line ") == 1, said
    assert 'shop.py, line 2: hr.App("shop"' in said
