"""Any bytes in a split ring: see `rings`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz.ring_seeds import ring_seeds
from tests.fuzz.rings import RingTarget

if TYPE_CHECKING:
    from collections.abc import Iterator

one_input = RingTarget("split").run


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield valid rings."""
    return ring_seeds("split")
