"""vhost_user.testing as authors of devices use it: with pytest, in a directory that is not ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from protocol.virtio.features import Feature
from tests.vhost_user.echo import Echo
from vhost_user.testing import driving

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 60

OWN = """
import pytest, vhost_user
pytest_plugins = ["vhost_user.testing"]
pytestmark = pytest.mark.trio

class Echo(vhost_user.VirtioDevice):
    device_id = vhost_user.DeviceId.CONSOLE
    async def run_queue(self, queue):
        async for chain in queue:
            chain.writable.write(chain.readable.read())
            chain.complete()

@pytest.fixture
def device():
    return Echo()

async def test_echo(driver_queue):
    assert await driver_queue.request(b"hello", 5) == b"hello"
"""


def outcome(directory: Path) -> tuple[int, str]:
    """Run pytest in a directory; return its exit code, and what it printed."""
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-q", "."]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        [*argv, f"--basetemp={directory}/tmp"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return result.returncode, result.stdout


def test_example_is_tested_without_qemu(tmp_path: Path) -> None:
    for name in ("scripted_rng.py", "test_scripted_rng.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    code, printed = outcome(tmp_path)
    assert (code, "1 passed" in printed) == (0, True), printed
    module = (tmp_path / "scripted_rng.py").read_text()
    (tmp_path / "scripted_rng.py").write_text(module.replace("cycle(script)", "cycle(script[1:])"))
    code, printed = outcome(tmp_path)
    assert (code, "1 failed" in printed) == (1, True), printed


def test_device_and_test_in_one_file(tmp_path: Path) -> None:
    """What a device raises is told as its own error, and a fixture that is missing by its name."""
    (tmp_path / "test_good.py").write_text(OWN)
    (tmp_path / "test_raises.py").write_text(OWN.replace("chain.complete()", "raise ArithmeticError('mine')"))
    (tmp_path / "test_lacks.py").write_text(OWN.replace("def device()", "def other()"))
    code, printed = outcome(tmp_path)
    assert (code, "1 failed, 1 passed, 1 error" in printed) == (1, True), printed
    assert "ArithmeticError: mine" in printed
    assert "define a fixture `device` that returns the device to be tested" in printed


async def test_driving_negotiates_what_it_is_told() -> None:
    async with driving(Echo(), plus=Feature.RING_PACKED) as front:
        assert Feature.RING_PACKED in front.features
        queue = await front.start_queue()
        assert await queue.request(b"hello", 5) == b"hello"
