"""Queues with a driver, over rings of each kind."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from protocol.virtio.features import Feature
from tests.vhost_user.queue.bench import SIZE, Bench
from tests.vhost_user.ring.rig import MODERN, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["split", "packed"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(Rig(request.param, SIZE))
    yield bench
    bench.close()
    gc.collect()


@pytest.fixture(params=["split", "packed"])
def ordered_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """One whose chains are given back in the order in which they were made available."""
    bench = Bench(Rig(request.param, SIZE, MODERN | Feature.IN_ORDER))
    yield bench
    bench.close()
    gc.collect()


@pytest.fixture
def split_bench() -> Iterator[Bench]:
    bench = Bench(Rig("split", SIZE))
    yield bench
    bench.close()
    gc.collect()
