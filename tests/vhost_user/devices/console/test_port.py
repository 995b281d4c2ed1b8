"""A port between guest and host: what waits, what is dropped, what scripts see of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from vhost_user.devices.console.control import PortState
from vhost_user.devices.console.port import BACKLOG, INPUT_LIMIT, TRANSCRIPT_LIMIT, Backlog, ConsolePort
from vhost_user.devices.console.simulation import PortSimulation
from vhost_user.simulation.calls import CallError

if TYPE_CHECKING:
    from trio.testing import MockClock


class Nothing:
    """A host side that never does anything."""

    async def run(self, port: ConsolePort) -> None:
        await trio.sleep_forever()

    def hang_up(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def __str__(self) -> str:
        return "nothing"


def scripted(*, is_console: bool = False, guest_open: bool = True, **options: int) -> PortSimulation:
    state = PortState("port", is_console, guest_open=guest_open)
    return PortSimulation("port", ConsolePort(state, **options))  # type: ignore[arg-type]


@given(st.lists(st.binary(max_size=20) | st.integers(0, 30)), st.integers(1, 20))
def test_backlog_that_drops_keeps_the_newest(steps: list[bytes | int], limit: int) -> None:
    backlog, everything, taken = Backlog(limit, blocks=False), b"", 0
    for step in steps:
        if isinstance(step, bytes):
            backlog.append(step)
            everything += step
        else:
            size = len(backlog.peek(step))
            backlog.consume(size)
            taken += size
        assert len(backlog) <= limit
        assert backlog.has_room
        assert backlog.peek(limit) == everything[len(everything) - len(backlog) :]
        assert backlog.dropped + taken + len(backlog) == len(everything)


@given(st.lists(st.binary(max_size=20) | st.integers(0, 30)), st.integers(1, 20))
def test_backlog_that_blocks_loses_nothing(steps: list[bytes | int], limit: int) -> None:
    backlog, put, taken = Backlog(limit, blocks=True), b"", b""
    for step in steps:
        if isinstance(step, bytes) and backlog.has_room:
            backlog.append(step)
            put += step
        elif isinstance(step, int):
            taken += backlog.peek(step)
            backlog.consume(step)
        assert taken + backlog.peek(limit + 20) == put
        assert backlog.has_room == (len(backlog) < limit)


def test_consoles_drop_and_ports_block_unless_told_otherwise() -> None:
    for is_console in (True, False):
        for blocks in (None, True, False):
            port = ConsolePort(PortState("port", is_console), blocks=blocks, backlog=4)
            port.put_output(b"123456")
            waits = not is_console if blocks is None else blocks
            assert port.has_room != waits
            assert port.output.peek() == (b"123456" if waits else b"3456")


def test_script_sees_what_the_host_gets_too() -> None:
    port = ConsolePort(PortState("port"), Nothing())
    part = PortSimulation("port", port)
    port.put_output(b"for both")
    assert part.read() == "for both"
    assert port.output.peek() == b"for both"
    port.put_output(bytes(TRANSCRIPT_LIMIT))
    assert len(part.read_bytes()) == TRANSCRIPT_LIMIT
    assert len(port.output) == TRANSCRIPT_LIMIT + 8


async def test_expect_returns_the_output_up_to_what_came() -> None:
    part = scripted()
    async with trio.open_nursery() as nursery:

        async def put_out() -> None:
            for text in (b"Debian ", b"log", b"in: ", b"rest"):
                part.port.put_output(text)
                await trio.testing.wait_all_tasks_blocked()

        nursery.start_soon(put_out)
        assert await part.expect("login: ") == "Debian login: "
        assert await part.expect_regex("^re(s|z)t$") == "rest"
    assert part.read() == ""


async def test_expect_gives_up_in_time(autojump_clock: MockClock) -> None:
    part = scripted()
    part.port.put_output(b"something else")
    with pytest.raises(CallError, match=r"not put out 'login: ' within 5 s, but 'something else'"):
        await part.expect("login: ", 5.0)
    assert trio.current_time() == 5
    assert part.read() == "something else"


async def test_wrong_regular_expression_is_refused() -> None:
    with pytest.raises(CallError, match="is not a regular expression"):
        await scripted().expect_regex("(")


def test_character_that_comes_in_two_parts_is_read_whole() -> None:
    part = scripted()
    euro = "€".encode()
    part.port.put_output(euro[:1])
    assert part.read() == ""
    part.port.put_output(euro[1:])
    assert part.read() == "€"


def test_input_has_its_limit() -> None:
    part = scripted()
    part.send("x" * INPUT_LIMIT)
    with pytest.raises(CallError, match="has no room for 1 byte more: the guest does not read"):
        part.send("x")
    assert part.port.take_input(1) == b"x"
    part.send("x")


async def test_bytes_are_written_once_there_is_room() -> None:
    part = scripted()
    data = bytes(range(256)) * 2048
    async with trio.open_nursery() as nursery:
        nursery.start_soon(part.write, data)
        came = b""
        while len(came) < len(data):
            await trio.testing.wait_all_tasks_blocked()
            assert part.port.input_size < 2 * INPUT_LIMIT
            came += part.port.take_input(50_000)
    assert came == data


def test_size_is_for_consoles_and_has_limits() -> None:
    with pytest.raises(CallError, match="port port is not a console"):
        scripted().resize(80, 25)
    console = scripted(is_console=True)
    for columns, rows in ((0, 25), (80, 1 << 16), (-1, 25)):
        with pytest.raises(ValueError, match="give 1 to 65535"):
            console.resize(columns, rows)
    console.resize(80, 25)
    assert console.status()["size"] == (80, 25)


async def test_script_closes_and_opens_its_end() -> None:
    part = scripted()
    with part.events() as events:
        part.close()
        assert part.status()["host_open"] is False
        part.open()
        assert part.status()["host_open"] is True
        assert [(await anext(events)).data for _ in range(2)] == [{"open": False}, {"open": True}]


def test_close_waits_until_the_guest_has_read() -> None:
    part = scripted()
    part.send("last words")
    part.close()
    assert part.port.state.host_open
    part.port.take_input(BACKLOG)
    assert not part.port.state.host_open


def test_close_does_not_wait_for_a_guest_that_has_gone() -> None:
    part = scripted(guest_open=False)
    part.send("unread")
    part.close()
    assert not part.port.state.host_open


def test_end_of_a_guest_ends_what_waits_for_it() -> None:
    part = scripted()
    part.send("unread")
    part.close()
    part.port.state.guest_open = False
    part.port.guest_changed()
    assert not part.port.state.host_open


def test_host_side_cannot_be_opened_or_closed_by_a_script() -> None:
    part = PortSimulation("port", ConsolePort(PortState("port"), Nothing()))
    with pytest.raises(CallError, match="is open while somebody uses nothing"):
        part.open()
    with pytest.raises(CallError, match="nothing cannot be closed from here"):
        part.close()
