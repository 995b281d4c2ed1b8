"""Numbers in texts."""

from __future__ import annotations

import pytest

from protocol.words import plural


@pytest.mark.parametrize(("count", "text"), [(0, "0 chips"), (1, "1 chip"), (2, "2 chips")])
def test_number_of_things(count: int, text: str) -> None:
    assert plural(count, "chip") == text
