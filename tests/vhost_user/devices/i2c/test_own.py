"""Chips and buses of one's own that go wrong: a NACK for the guest, a traceback for the author, once."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import trio

from tests.vhost_user.devices.i2c.driver import Read, Write, submit, transfer
from vhost_user.devices.i2c import I2c, I2cChip, Lm75, Register, RegisterChip
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from vhost_user.devices.i2c import Bus
    from vhost_user.devices.i2c.chips.chip import I2cMessage
    from vhost_user.frontend import DriverQueue

OWN, OTHER, SENSOR, HOST = 0x20, 0x21, 0x48, 0x30
SENSOR_READS = b"\x15\x80"
NACK = "failed: the guest gets an error. This is logged once."


class Faulty(I2cChip):
    """Fails in one method, as if its author had forgotten something."""

    def __init__(self, where: str = "", *, returns: object = b"") -> None:
        super().__init__()
        self.where = where
        self.returns = returns
        self.stopped = 0

    def start(self, *, read: bool) -> None:
        self.fail("start")

    def write(self, data: bytes) -> None:
        self.fail("write")

    def read(self, size: int) -> bytes:
        self.fail("read")
        return self.returns  # type: ignore[return-value]  # as its author has it

    def stop(self) -> None:
        self.stopped += 1
        self.fail("stop")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise ZeroDivisionError(f"in {where}")


@dataclass
class Equal(I2cChip):
    """A dataclass, whose objects have no hash, and are equal to others with the same values."""

    value: bytes
    stopped = 0

    def __post_init__(self) -> None:
        super().__init__()

    def read(self, size: int) -> bytes:
        return self.value

    def stop(self) -> None:
        self.stopped += 1


class Careless(RegisterChip):
    """Has numbers in its registers that do not fit."""

    registers: ClassVar = {0: Register(), 1: Register()}

    def register_read(self, register: int) -> int:
        return 256 if register == 0 else 7

    def register_written(self, register: int, value: int) -> None:
        raise ExceptionGroup("of a library", [KeyError(register)])


class OwnBus:
    """A bus of one's own."""

    addresses = frozenset({HOST})

    def __init__(self, result: object) -> None:
        self.result = result
        self.data: object = b"\x07"

    async def transfer(self, messages: Sequence[I2cMessage]) -> int:
        if isinstance(self.result, Exception):
            raise self.result
        if self.result is None:
            await trio.sleep_forever()
        for message in messages:
            message.data = self.data  # type: ignore[assignment]  # as its author has it
        return self.result  # type: ignore[return-value]

    def close(self) -> None:
        raise ZeroDivisionError("in close")


@asynccontextmanager
async def bus_of(chips: Mapping[int, I2cChip], *host: Bus, **how: Any) -> AsyncIterator[DriverQueue]:
    with I2c({SENSOR: Lm75(21.5), **chips}, host) as bus:
        async with driving(bus, **how) as front:
            yield await front.start_queue()


async def sensor(queue: DriverQueue) -> bytes | None:
    return (await transfer(queue, Write(SENSOR, b"\0"), Read(SENSOR, 2)))[1]


@pytest.mark.parametrize("where", ["start", "write", "read"])
async def test_exception_is_a_nack_with_its_traceback_once(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = Read(OWN, 2) if where == "read" else Write(OWN, b"\1")
    async with bus_of({OWN: Faulty(where)}) as queue:
        for _ in range(50):
            assert await transfer(queue, message) == [None]
        assert await sensor(queue) == SENSOR_READS
    (record,) = caplog.records
    assert record.getMessage() == f"the chip Faulty at {OWN:#04x} {NACK}"
    assert f"ZeroDivisionError: in {where}" in caplog.text


async def test_what_was_done_before_counts(caplog: pytest.LogCaptureFixture) -> None:
    """The transfer ends at the message that failed, and each chip that had a part in it gets its stop."""
    chip, other = Faulty("read", returns=b""), Faulty(returns=b"\1")
    async with bus_of({OWN: chip, OTHER: other}) as queue:
        given = (Write(OTHER, b"\1"), Read(OTHER, 1), Read(OWN, 1), Write(OTHER, b"\2"))
        assert await transfer(queue, *given) == [b"", b"\1", None, None]
    assert (chip.stopped, other.stopped) == (1, 1)
    assert len(caplog.records) == 1


async def test_chips_that_are_equal_and_have_no_hash() -> None:
    chip, other = Equal(b"\1"), Equal(b"\1")
    async with bus_of({OWN: chip, OTHER: other}) as queue:
        assert await transfer(queue, Read(OWN, 1), Read(OTHER, 1), Read(OWN, 1)) == [b"\1"] * 3
    assert (chip.stopped, other.stopped) == (1, 1)


async def test_chip_that_fails_at_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    """What it was asked for is done by then; the stops of others come."""
    other = Faulty(returns=b"\1")
    async with bus_of({OWN: Faulty("stop", returns=b"\2"), OTHER: other}) as queue:
        assert await transfer(queue, Read(OWN, 1), Read(OTHER, 1)) == [b"\2", b"\1"]
    assert other.stopped == 1
    assert "ZeroDivisionError: in stop" in caplog.text


@pytest.mark.parametrize("returns", [None, "text", 7, [1, 2], True])
async def test_read_that_returns_no_bytes_is_a_nack(
    returns: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with bus_of({OWN: Faulty(returns=returns)}) as queue:
        assert await transfer(queue, Read(OWN, 2)) == [None]
        assert await sensor(queue) == SENSOR_READS
    assert f"TypeError: a read of 2 bytes has returned {returns!r}, and no bytes" in caplog.text


@pytest.mark.parametrize(
    ("returns", "got"), [(b"", b"\xff\xff"), (b"\1", b"\1\xff"), (bytearray(b"\1\2\3"), b"\1\2")]
)
async def test_read_that_returns_fewer_or_more_bytes(returns: object, got: bytes) -> None:
    async with bus_of({OWN: Faulty(returns=returns)}) as queue:
        assert await transfer(queue, Read(OWN, 2)) == [got]


async def test_register_that_holds_what_it_cannot(caplog: pytest.LogCaptureFixture) -> None:
    async with bus_of({OWN: Careless()}) as queue:
        assert await transfer(queue, Write(OWN, b"\0"), Read(OWN, 1)) == [b"", None]
        assert await transfer(queue, Write(OWN, b"\1"), Read(OWN, 1)) == [b"", b"\7"]
        assert await transfer(queue, Write(OWN, b"\1\2")) == [None]
    assert "register_read(0x0) has returned 256, and not 0 to 255" in caplog.text
    assert "ExceptionGroup: of a library" in caplog.text


async def test_chip_whose_author_forgot_its_base_class(caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(I2cChip):
        def __init__(self) -> None:
            pass

    async with bus_of({OWN: Forgetful()}) as queue:
        assert await transfer(queue, Read(OWN, 2)) == [None]
        assert await sensor(queue) == SENSOR_READS
    assert "AttributeError" in caplog.text


async def test_run_that_fails_leaves_the_chip_on_the_bus(caplog: pytest.LogCaptureFixture) -> None:
    class Clock(Faulty):
        async def run(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise ZeroDivisionError("in run")

    with I2c({SENSOR: Lm75(21.5), OWN: Clock(returns=b"\7")}) as bus:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.run_host)
            await trio.testing.wait_all_tasks_blocked()
            async with driving(bus) as front:
                queue = await front.start_queue()
                assert await transfer(queue, Read(OWN, 1), Read(SENSOR, 1)) == [b"\7", b"\x15"]
            nursery.cancel_scope.cancel()
    assert "its run() is over, while the guest has it still" in caplog.text
    assert "ZeroDivisionError: in run" in caplog.text


async def test_all_chips_are_closed(caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    class Closing(Faulty):
        def close(self) -> None:
            closed.append(self)
            raise OSError("in close")

    chips = {OWN: Closing(), OTHER: Closing()}
    async with bus_of(chips, OwnBus(1)) as queue:
        assert await sensor(queue) == SENSOR_READS
    assert closed == list(chips.values())
    assert "ZeroDivisionError: in close" in caplog.text


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (OSError("gone"), "OSError: gone"),
        ("2", "transfer() of 1 message has returned '2'"),
        (2, "transfer() of 1 message has returned 2"),
        (-1, "transfer() of 1 message has returned -1"),
    ],
)
async def test_bus_that_fails_is_a_nack(result: object, told: str, caplog: pytest.LogCaptureFixture) -> None:
    async with bus_of({}, OwnBus(result)) as queue:
        assert await transfer(queue, Read(HOST, 1)) == [None]
        assert await sensor(queue) == SENSOR_READS
    assert told in caplog.text


async def test_bus_that_gives_no_bytes_is_a_nack(caplog: pytest.LogCaptureFixture) -> None:
    bus = OwnBus(1)
    async with bus_of({}, bus) as queue:
        assert await transfer(queue, Read(HOST, 1)) == [b"\7"]
        bus.data = "7"
        assert await transfer(queue, Read(HOST, 1)) == [None]
    assert "a read of 1 byte has returned '7', and no bytes" in caplog.text


async def test_bus_that_never_returns_is_a_nack(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with bus_of({}, OwnBus(None), patience=1000) as queue:
        stuck, after = submit(queue, Read(HOST, 1)), submit(queue, Write(SENSOR, b"\0"), Read(SENSOR, 2))
        assert (await queue.wait(stuck[0]))[-1:] == b"\1"
        assert (await queue.wait(after[1]))[:-1] == SENSOR_READS
    assert "TimeoutError: it has not returned within 10 s, and was cancelled" in caplog.text


async def test_caller_from_the_host_gets_the_exception_itself(caplog: pytest.LogCaptureFixture) -> None:
    chip = Faulty("write")
    with pytest.raises(ZeroDivisionError, match="in write"):
        chip.transfer(b"\1")
    assert chip.stopped == 1
    assert not caplog.records
