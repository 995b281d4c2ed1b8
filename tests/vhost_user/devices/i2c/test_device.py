"""The i2c device: what it does with requests that are right, and with those that are not."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio.features import Feature
from protocol.virtio.i2c import MAX_MESSAGE, REQUEST_HEADER, I2cFeature, RequestFlag
from tests.vhost_user.devices.i2c.driver import (
    ERR,
    OK,
    Read,
    Write,
    header,
    parts,
    result,
    submit,
    transfer,
)
from vhost_user.devices.i2c import I2c, I2cChip, NackError
from vhost_user.devices.i2c.requests import MAX_GROUP, completion_order
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from vhost_user.devices.i2c.chips.chip import I2cMessage
    from vhost_user.frontend import DriverQueue, Part

CHIP, OTHER, ABSENT, HOST = 0x20, 0x21, 0x22, 0x30
SECONDS = 60
FAIL_NEXT, M_RD = int(RequestFlag.FAIL_NEXT), int(RequestFlag.M_RD)


class Recorder(I2cChip):
    """Writes down what it is asked for, acknowledges no 0xEE, and reads as 1, 2, 3 and so on."""

    def __init__(self, told: list[str], name: str = "") -> None:
        super().__init__()
        self.told = told
        self.name = name

    def start(self, *, read: bool) -> None:
        self.told.append(f"{self.name}start {'read' if read else 'write'}")

    def write(self, data: bytes) -> None:
        if data[0] == 0xEE:
            raise NackError("it does not like that")
        self.told.append(f"{self.name}{data.hex()}")

    def read(self, size: int) -> bytes:
        self.told.append(f"{self.name}read {size}")
        return bytes(range(1, size + 1))

    def stop(self) -> None:
        self.told.append(f"{self.name}stop")


class SlowBus:
    """A bus of the host that takes its time, in a thread, and writes down what it does."""

    addresses = frozenset({HOST, HOST + 1})

    def __init__(self) -> None:
        self.told: list[list[I2cMessage]] = []
        self.entered = trio.Event()
        self.go_on = trio.Event()
        self.go_on.set()

    async def transfer(self, messages: Sequence[I2cMessage]) -> int:
        self.entered.set()
        await self.go_on.wait()
        self.told.append([copy.copy(message) for message in messages])
        for message in messages:
            if message.read:
                message.data = b"\x07" * message.size
        return 0 if any(message.data == b"\xee" for message in messages) else len(messages)

    def close(self) -> None:
        pass


@pytest.fixture
def told() -> list[str]:
    """What the chips were asked for."""
    return []


@pytest.fixture
def bus() -> SlowBus:
    return SlowBus()


@pytest.fixture
def device(told: list[str], bus: SlowBus) -> I2c:
    return I2c({CHIP: Recorder(told), OTHER: Recorder(told, "other ")}, [bus])


@pytest.fixture
async def queue(device: I2c) -> AsyncIterator[DriverQueue]:
    async with driving(device) as front:
        yield await front.start_queue(size=64)


# Transfers


async def test_write_and_read(queue: DriverQueue, told: list[str]) -> None:
    assert await transfer(queue, Write(CHIP, b"\x05\x06")) == [b""]
    assert await transfer(queue, Read(CHIP, 3)) == [b"\x01\x02\x03"]
    assert told == ["start write", "0506", "stop", "start read", "read 3", "stop"]


async def test_group_is_one_transfer_with_repeated_starts(queue: DriverQueue, told: list[str]) -> None:
    assert await transfer(queue, Write(CHIP, b"\x05"), Read(CHIP, 2)) == [b"", b"\x01\x02"]
    assert told == ["start write", "05", "start read", "read 2", "stop"]


async def test_group_may_go_to_several_chips(queue: DriverQueue, told: list[str]) -> None:
    assert await transfer(queue, Write(CHIP, b"\x05"), Write(OTHER, b"\x06")) == [b"", b""]
    assert told == ["start write", "05", "other start write", "other 06", "stop", "other stop"]


async def test_request_of_length_zero_is_an_address_alone(queue: DriverQueue, told: list[str]) -> None:
    assert await transfer(queue, Write(CHIP)) == [b""]
    assert await transfer(queue, Read(CHIP)) == [b""]
    assert await transfer(queue, Write(ABSENT)) == [None]
    assert told == ["start write", "stop", "start read", "stop"]


async def test_absent_address_is_not_acknowledged(queue: DriverQueue, told: list[str]) -> None:
    assert await transfer(queue, Read(ABSENT, 4)) == [None]
    assert await transfer(queue, Write(ABSENT, b"\x01")) == [None]
    assert told == []


async def test_buffers_may_be_cut_anywhere(queue: DriverQueue, told: list[str]) -> None:
    head = header(CHIP)
    assert await queue.request(head[:3], head[3:] + b"\x01", b"\x02", 1) == OK
    assert await queue.request(header(CHIP, M_RD)[:5], head[5:], 1, 1, 1) == b"\x01\x02" + OK
    assert await queue.request(header(CHIP, M_RD), 2, 3) == b"\x01\x02\x03\x04" + OK
    assert told[1] == "0102"


async def test_longest_message(queue: DriverQueue) -> None:
    assert await transfer(queue, Write(CHIP, bytes(MAX_MESSAGE))) == [b""]
    (data,) = await transfer(queue, Read(HOST, MAX_MESSAGE))
    assert data == b"\x07" * MAX_MESSAGE
    assert await transfer(queue, Read(CHIP, MAX_MESSAGE + 1)) == [None]
    assert await transfer(queue, Write(CHIP, bytes(MAX_MESSAGE + 1))) == [None]


# Failures


async def test_failure_fails_the_rest_of_its_group(queue: DriverQueue, told: list[str]) -> None:
    group = Write(CHIP, b"\x01"), Write(CHIP, b"\xee"), Write(CHIP, b"\x02"), Read(CHIP, 4)
    assert await transfer(queue, *group) == [b"", None, None, None]
    assert told == ["start write", "01", "start write", "stop"]


@pytest.mark.parametrize(
    ("count", "done", "order"),
    [(1, 1, [0]), (1, 0, [0]), (3, 3, [0, 1, 2]), (3, 0, [1, 2, 0]), (4, 1, [0, 2, 3, 1])],
)
def test_request_that_failed_first_comes_back_last(count: int, done: int, order: list[int]) -> None:
    assert completion_order(count, done) == order


@pytest.mark.parametrize("first", [b"\x01", b"\xee"])
async def test_group_comes_back_with_one_call(device: I2c, first: bytes) -> None:
    """Or a Linux that waits for none after the one that failed frees what the others are."""
    features = Feature.VERSION_1 | Feature.INDIRECT_DESC | I2cFeature.ZERO_LENGTH_REQUEST
    async with driving(device, features) as front:
        queue = await front.start_queue()
        for group in range(2):
            requests = submit(queue, Write(CHIP, first), Read(CHIP, 1), Read(CHIP, 1))
            await wait_all_tasks_blocked()
            assert queue.call.take() == 1, group
            await queue.wait(requests[0])
            assert all(request.is_done for request in requests)


async def test_group_after_a_failed_one_is_done(queue: DriverQueue) -> None:
    assert await transfer(queue, Write(CHIP, b"\xee"), Read(CHIP, 1)) == [None, None]
    assert await transfer(queue, Write(CHIP, b"\x05"), Read(CHIP, 1)) == [b"", b"\x01"]


async def test_failure_without_fail_next_fails_nothing_else(queue: DriverQueue) -> None:
    requests = submit(queue, Write(CHIP, b"\xee")) + submit(queue, Read(CHIP, 1))
    assert [result(await queue.wait(request)) for request in requests] == [None, b"\x01"]


async def test_failure_at_the_end_of_a_group_is_over_with_it(queue: DriverQueue) -> None:
    requests = submit(queue, Write(CHIP, b"\x01"), Write(CHIP, b"\xee")) + submit(queue, Read(CHIP, 1))
    assert [result(await queue.wait(request)) for request in requests] == [b"", None, b"\x01"]


async def test_group_that_comes_in_pieces_is_one_transfer(queue: DriverQueue, told: list[str]) -> None:
    first = submit(queue, Write(CHIP, b"\x01"), ends=False)
    await wait_all_tasks_blocked()
    assert told == []
    assert await transfer(queue, Read(CHIP, 1)) == [b"\x01"]
    assert [result(await queue.wait(request)) for request in first] == [b""]
    assert told == ["start write", "01", "start read", "read 1", "stop"]


async def test_rest_of_a_group_is_not_waited_for_for_ever(queue: DriverQueue, told: list[str]) -> None:
    assert await transfer(queue, Write(CHIP, b"\x01"), ends=False) == [b""]
    assert told == ["start write", "01", "stop"]
    assert await transfer(queue, Read(CHIP, 1)) == [b"\x01"]


async def test_rest_of_a_failed_group_fails_however_late_it_comes(
    queue: DriverQueue, told: list[str]
) -> None:
    assert await transfer(queue, Write(CHIP, b"\xee"), ends=False) == [None]
    assert await transfer(queue, Write(CHIP, b"\x01"), ends=False) == [None]
    assert await transfer(queue, Read(CHIP, 1)) == [None]
    assert await transfer(queue, Read(CHIP, 1)) == [b"\x01"]
    assert told == ["start write", "stop", "start read", "read 1", "stop"]


async def test_group_that_fills_the_ring_is_done_at_once(device: I2c, autojump_clock: MockClock) -> None:
    """Linux's driver adds what there is room for, and waits for that."""
    async with driving(device) as front:
        queue = await front.start_queue(size=4)
        began = trio.current_time()
        assert await transfer(queue, *[Write(CHIP, b"\x01")] * 4, ends=False) == [b""] * 4
        assert trio.current_time() == began


async def test_failed_group_is_forgotten_when_the_queue_starts_again(device: I2c) -> None:
    async with driving(device) as front:
        queue = await front.start_queue()
        assert await transfer(queue, Write(CHIP, b"\xee"), ends=False) == [None]
        await front.stop_queue(queue)
        await front.resume_queue(queue)
        assert await transfer(queue, Read(CHIP, 1)) == [b"\x01"]


async def test_stop_leaves_half_a_group_in_the_ring(device: I2c, told: list[str]) -> None:
    async with driving(device) as front:
        queue = await front.start_queue()
        submit(queue, Write(CHIP, b"\x01"), ends=False)
        await wait_all_tasks_blocked()
        assert (await front.stop_queue(queue), told) == (0, [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=20))
async def test_request_fails_if_it_is_bad_or_the_one_before_it_failed_in_its_group(
    requests: list[tuple[bool, bool, bool]],
) -> None:
    """Whatever the groups are, and in whatever pieces they are made available."""
    chip = Recorder([])
    expected, failing = [], False
    async with driving(I2c({CHIP: chip})) as front:
        queue = await front.start_queue()
        submitted = []
        for is_good, fail_next, publish in requests:
            done = is_good and not failing
            failing = fail_next and not done
            expected.append(b"" if done else None)
            message = Write(CHIP, b"\x01" if is_good else b"\xee")
            submitted.append(queue.submit(*parts(message, last=not fail_next), publish=publish))
        queue.publish()
        assert [result(await queue.wait(request)) for request in submitted] == expected
    assert chip.told.count("01") == expected.count(b"")
    assert chip.told[-1:] in ([], ["stop"])


# Requests that are wrong

WRONG: dict[str, tuple[Sequence[Part], bytes]] = {
    "nothing at all, but a status": ((1,), ERR),
    "a short header": ((header(CHIP)[:7], 1), ERR),
    "a short header, and room": ((header(CHIP)[:7], 4, 1), bytes(4) + ERR),
    "no status": ((header(CHIP), b"\x01"), b""),
    "a short header, no status": ((b"\x01",), b""),
    "no status for a read": ((header(CHIP, M_RD),), b""),
    "reading what is to be written": ((header(CHIP, M_RD), b"\x01\x02", 1), ERR),
    "reading and writing": ((header(CHIP, M_RD), b"\x01", 2, 1), bytes(2) + ERR),
    "writing into a buffer": ((header(CHIP), 2, 1), bytes(2) + ERR),
    "writing with both": ((header(CHIP), b"\x01", 2, 1), bytes(2) + ERR),
    "an unknown flag": ((header(CHIP, 4), b"\x01", 1), ERR),
    "the highest flag": ((header(CHIP, 1 << 31 | M_RD), 1, 1), bytes(1) + ERR),
    "a 10-bit address": ((REQUEST_HEADER.pack(0x55F2, 0, 0), b"\x01", 1), ERR),
    "a 10-bit address that looks like seven": ((REQUEST_HEADER.pack(0x00F2, 0, 0), b"\x01", 1), ERR),
    "an address of 16 bits": ((REQUEST_HEADER.pack(CHIP << 8, 0, 0), b"\x01", 1), ERR),
    "the bit of the direction": ((REQUEST_HEADER.pack(CHIP << 1 | 1, 0, 0), b"\x01", 1), ERR),
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_request_is_refused_and_the_next_one_is_done(
    name: str, queue: DriverQueue, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    request, expected = WRONG[name]
    for _ in range(3):
        assert await queue.request(*request) == expected
    assert told == []
    assert await transfer(queue, Read(CHIP, 1)) == [b"\x01"]
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


async def test_padding_does_not_matter(queue: DriverQueue) -> None:
    assert await queue.request(REQUEST_HEADER.pack(CHIP << 1, 0xFFFF, 0), b"\x01", 1) == OK


@pytest.mark.parametrize(
    ("addr", "told"),
    [
        (0x55F2, "the 10-bit address 0x155; chips have addresses of 7 bits here"),
        (0x2000, "0x2000, which is no"),
    ],
)
async def test_log_says_what_is_wrong_with_an_address(
    addr: int, told: str, queue: DriverQueue, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.request(REQUEST_HEADER.pack(addr, 0, 0), b"\x01", 1)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().startswith(f"refused a request: {told}")


async def test_log_stays_short_whatever_a_guest_thinks_of(
    queue: DriverQueue, caplog: pytest.LogCaptureFixture
) -> None:
    for flags in range(4, 1000, 4):
        assert await queue.request(header(CHIP, flags), b"\x01", 1) == ERR
    assert 1 < len(caplog.records) < 50


async def test_wrong_request_in_a_group_fails_what_is_after_it(queue: DriverQueue, told: list[str]) -> None:
    requests = [
        queue.submit(*parts(Write(CHIP, b"\x01"), last=False), publish=False),
        queue.submit(header(CHIP, M_RD | FAIL_NEXT), b"\x02", 1, publish=False),
        *submit(queue, Read(CHIP, 2)),
        *submit(queue, Read(CHIP, 1)),
    ]
    answers = [await queue.wait(request) for request in requests]
    assert answers == [OK, ERR, bytes(2) + ERR, b"\x01" + OK]
    assert told == ["start write", "01", "stop", "start read", "read 1", "stop"]


async def test_driver_without_the_mandatory_feature_is_rejected(
    device: I2c, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with driving(device, Feature.VERSION_1) as front:
        queue = await front.start_queue()
        assert await transfer(queue, Write(CHIP)) == [None]
        assert await transfer(queue, Read(CHIP, 3)) == [None]
        assert await transfer(queue, Write(CHIP, b"\x01")) == [None]
    assert told == []
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "the driver did not turn on ZERO_LENGTH_REQUEST" in record.getMessage()


# Buses of the host


async def test_group_goes_to_a_bus_of_the_host_as_a_whole(queue: DriverQueue, bus: SlowBus) -> None:
    assert await transfer(queue, Write(HOST, b"\x01"), Read(HOST + 1, 2)) == [b"", b"\x07\x07"]
    ((first, second),) = bus.told
    assert (first.address, first.read, first.data) == (HOST, False, b"\x01")
    assert (second.address, second.read, second.size) == (HOST + 1, True, 2)


async def test_nothing_is_read_in_a_transfer_that_failed(queue: DriverQueue) -> None:
    assert await transfer(queue, Read(HOST, 2), Write(HOST, b"\xee")) == [None, None]


async def test_no_transfer_has_more_messages_than_the_kernel_takes(queue: DriverQueue, bus: SlowBus) -> None:
    assert await transfer(queue, *[Write(HOST, b"\x01")] * (MAX_GROUP + 5)) == [b""] * (MAX_GROUP + 5)
    assert [len(messages) for messages in bus.told] == [MAX_GROUP, 5]


async def test_group_over_two_buses_is_done_up_to_the_failure(
    queue: DriverQueue, bus: SlowBus, told: list[str]
) -> None:
    group = Write(CHIP, b"\x01"), Read(HOST, 1), Write(CHIP, b"\xee"), Read(HOST, 1)
    assert await transfer(queue, *group) == [b"", b"\x07", None, None]
    assert told == ["start write", "01", "stop", "start write", "stop"]
    assert len(bus.told) == 1


async def test_transfer_that_takes_its_time_holds_up_the_ones_after_it_and_nothing_else(
    device: I2c, queue: DriverQueue, bus: SlowBus, told: list[str]
) -> None:
    bus.go_on = trio.Event()
    slow, quick = submit(queue, Read(HOST, 1)) + submit(queue, Read(CHIP, 1))
    with trio.fail_after(SECONDS):
        await bus.entered.wait()
        async with driving(device.for_another_guest()) as front:
            other = await front.start_queue()
            assert await transfer(other, Read(CHIP, 2)) == [b"\x01\x02"]
        assert not slow.is_done
        assert not quick.is_done
        bus.go_on.set()
        assert [result(await queue.wait(request)) for request in (slow, quick)] == [b"\x07", b"\x01"]


async def test_guests_do_not_get_between_each_others_messages(device: I2c, told: list[str]) -> None:
    async with driving(device) as front, driving(device.for_another_guest()) as other_front:
        queue, other = await front.start_queue(), await other_front.start_queue()
        begun = submit(queue, Write(CHIP, b"\x01"), ends=False)
        await wait_all_tasks_blocked()
        assert await transfer(other, Write(CHIP, b"\x02"), Read(CHIP, 1)) == [b"", b"\x01"]
        begun += submit(queue, Read(CHIP, 2))
        assert [result(await queue.wait(request)) for request in begun] == [b"", b"\x01\x02"]
    half = len(told) // 2
    assert told[:half] == ["start write", "02", "start read", "read 1", "stop"]
    assert told[half:] == ["start write", "01", "start read", "read 2", "stop"]


def test_address_is_used_once(bus: SlowBus) -> None:
    with pytest.raises(ValueError, match="address 0x30 is used twice"):
        I2c({HOST: I2cChip()}, [bus])


@pytest.mark.parametrize("address", [0x07, 0x78])
def test_reserved_address_is_none_of_a_chip(address: int) -> None:
    with pytest.raises(ValueError, match="is not an address of a chip; they are 0x08 to 0x77"):
        I2c({address: I2cChip()})
