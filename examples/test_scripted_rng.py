"""Tests of scripted_rng.py without QEMU: `pytest test_scripted_rng.py` in this directory."""

import pytest
from scripted_rng import ScriptedRng

from vhost_user.frontend import DriverQueue

pytest_plugins = ["vhost_user.testing"]
pytestmark = pytest.mark.trio


@pytest.fixture
def device() -> ScriptedRng:
    return ScriptedRng(b"\x01\x02\x03")


async def test_script_is_repeated(driver_queue: DriverQueue) -> None:
    assert await driver_queue.request(5) == b"\x01\x02\x03\x01\x02"
    assert await driver_queue.request(2) == b"\x03\x01"
