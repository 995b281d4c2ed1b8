"""The tables of docs/protocol.md agree with the code, and every row says what is done."""

from __future__ import annotations

import re

import pytest

from tests.docs.tables import DOCUMENT, TABLES, rewritten


def test_tables_are_those_of_the_code() -> None:
    assert DOCUMENT.read_text() == rewritten(DOCUMENT.read_text()), "stale: run make tables"


@pytest.mark.parametrize("heading", TABLES)
def test_every_row_says_what_is_done(heading: str) -> None:
    table = DOCUMENT.read_text().split(heading)[1].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    assert len(rows) >= 10
    for row in rows:
        assert re.search(r"\w.* \|$", row.rpartition(" | ")[2]), row
