"""Guest memory without a region, closed in the end."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from vhost_user.memory.regions import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    memory.close()
    gc.collect()  # errors that were caught refer to views
