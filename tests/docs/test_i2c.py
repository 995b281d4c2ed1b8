"""docs/i2c.md is true: its chips do what it says of them; tests/uml/test_i2c.py runs its sessions."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.docs.documents import blocks, read
from tests.docs.test_vhost_user import rows
from tests.vhost_user.devices.i2c.driver import Read, Write, transfer
from vhost_user.devices.i2c import At24, I2c, I2cChip, Lm75, RegisterChip
from vhost_user.devices.i2c.chips.at24 import MODELS
from vhost_user.devices.i2c.options import CHIPS
from vhost_user.testing import driving

if TYPE_CHECKING:
    from pathlib import Path


GUIDE = read("i2c.md")
SECONDS = 60


@pytest.fixture(scope="module")
def guide() -> dict[str, Any]:
    """What the guide's code defines."""
    names: dict[str, Any] = {"__name__": "guide"}
    for block in blocks(GUIDE, "python"):
        exec(compile(block, "i2c.md", "exec", dont_inherit=True), names)  # noqa: S102 -- it is ours
    return names


async def test_light(guide: dict[str, Any]) -> None:
    light = guide["Light"]()
    light.set_brightness(500)
    async with driving(I2c({0x23: light})) as front:
        queue = await front.start_queue()
        assert await transfer(queue, Write(0x23, b"\0"), Read(0x23, 3)) == [b"", b"\x42\x01\xf4"]


async def test_lock(guide: dict[str, Any]) -> None:
    code, wrong, treasure = Write(0x20, b"1234"), Write(0x20, b"4321"), Read(0x20, 8)
    async with driving(I2c({0x20: guide["Lock"]()})) as front:
        queue = await front.start_queue()
        assert await transfer(queue, code, treasure) == [b"", b"treasure"]
        assert await transfer(queue, treasure) == [None]
        assert await transfer(queue, wrong, treasure) == [b"", None]
        assert await transfer(queue, code) == [b""]
        assert await transfer(queue, treasure) == [None]


async def test_program(guide: dict[str, Any], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It listens, with an EEPROM in the working directory."""
    monkeypatch.chdir(directory)
    served = trio.Event()

    async def serve(device: I2c, *, socket_path: str) -> None:
        assert sorted(device.chips) == [0x48, 0x50]
        assert socket_path == "/tmp/i2c.sock"
        device.close()
        served.set()

    monkeypatch.setattr(guide["vhost_user"], "serve", serve)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guide["main"])
        with trio.fail_after(SECONDS):
            await served.wait()
        nursery.cancel_scope.cancel()
    assert (directory / "eeprom.bin").stat().st_size == 256


def test_tables_of_chips_and_calls() -> None:
    named = {cells[0] for cells in rows("A comma within a value is given twice.", GUIDE)}
    assert set(re.findall(r"`(\w+)`", " ".join(named))) == set(CHIPS)
    keys = {
        cells[0].split("`")[1]: cells[1] for cells in rows("A comma within a value is given twice.", GUIDE)
    }
    assert set(re.findall(r"`(\w+)=", keys["24c01"])) == set(inspect.signature(At24).parameters) - {"model"}
    assert set(re.findall(r"`(\w+)=", keys["lm75"])) == set(inspect.signature(Lm75).parameters)
    assert set(MODELS) < set(CHIPS)

    calls = {call for kind in (I2cChip, RegisterChip, Lm75, At24) for call in kind.calls(kind())}
    told = GUIDE.partition("| chips | call |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)\(", told)) == calls
