"""Users' own ports go wrong: the guest gets an error or nothing, and all else goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio.net import GUEST_OFFLOADS_SET, ControlClass, ControlStatus
from tests.vhost_user.devices.net.driver import CONTROLLED, MERGING, PLAIN, begin, frame, give
from tests.vhost_user.devices.net.recording_port import TestPort
from tests.vhost_user.raw_frontend import attached
from vhost_user.devices.net.device import Net
from vhost_user.devices.net.ports.impaired import ImpairedPort
from vhost_user.devices.net.ports.impairments import Impairments
from vhost_user.devices.net.ports.pcap import Capture, CapturedPort

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vhost_user.devices.net.ports.port import Receiver
from tests.vhost_user.devices.own_code import Mistake, tracebacks


class OwnPort(TestPort):
    """Fails where it is told to."""

    def __init__(self, where: str = "", *, returns: object = True) -> None:
        super().__init__()
        self.where = where
        self.returns = returns
        self.begun = 0

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        self.fail("send")
        if self.returns is not True:
            return self.returns  # type: ignore[return-value]  # as its author has it
        return super().send(pair, buffers, length)

    def flush(self, pair: int) -> None:
        self.fail("flush")

    async def until_sendable(self, pair: int) -> None:
        self.fail("until_sendable")

    async def receive(self, pair: int, receiver: Receiver) -> None:
        self.begun += 1
        if self.begun == 1:
            self.fail("receive")
            if self.where == "return":
                return
        await super().receive(pair, receiver)

    async def run(self) -> None:
        self.fail("run")

    def set_offloads(self, features: Any) -> None:
        self.fail("set_offloads")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise Mistake(f"in {where}")


@pytest.mark.parametrize(
    ("port", "told"),
    [
        (OwnPort("send"), "Mistake: in send"),
        (OwnPort(returns=None), "send() has returned None: True is for a frame that it is done with"),
        (OwnPort("until_sendable", returns=False), "Mistake: in until_sendable"),
    ],
)
async def test_frame_is_dropped_that_the_port_fails_to_send(
    port: OwnPort, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = Net(port)
    async with attached(device) as front:
        (queue,) = await begin(front, PLAIN, 1)
        for _ in range(20):
            assert await queue.exchange([frame(60)], []) == []
        port.where, port.returns = "", True
        assert await queue.exchange([frame(61)], []) == []
    assert (device.from_guest.dropped, device.from_guest.frames) == (20, 1)
    assert port.sent == [(0, frame(61))]
    assert told in caplog.text
    assert caplog.text.count("failed: ") == 1


async def test_port_that_fails_to_flush(caplog: pytest.LogCaptureFixture) -> None:
    port = OwnPort("flush")
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, PLAIN, 1)
        assert await queue.exchange([frame(60)], []) == []
        assert await queue.exchange([frame(60)], []) == []
    assert len(port.sent) == 2
    assert tracebacks(caplog) == 1


@pytest.mark.parametrize(
    ("where", "told"),
    [("receive", "Mistake: in receive"), ("return", "receive() has returned, which it must")],
)
async def test_port_that_fails_to_receive_is_asked_again(
    where: str, told: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    port = OwnPort(where)
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, MERGING, 0)
        queue.submit([], [2000])
        assert give(await port.until_receiving(), frame(300))
        await queue.wait()
    assert port.begun == 2
    assert told in caplog.text


async def test_port_that_cannot_set_offloads_refuses_the_guests_command(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = OwnPort()
    async with attached(Net(port)) as front:
        (control,) = await begin(front, CONTROLLED, 2)
        port.where = "set_offloads"
        command = bytes([ControlClass.GUEST_OFFLOADS, GUEST_OFFLOADS_SET]) + bytes(8)
        assert await control.exchange([command], [1]) == [bytes([ControlStatus.ERR])]
        port.where = ""
        assert await control.exchange([command], [1]) == [bytes([ControlStatus.OK])]
    assert "Mistake: in set_offloads" in caplog.text


class PortOfALostCard(TestPort):
    """Looks at the host each time that it is asked, where there is nothing any more."""

    mtu_says: object = None

    @property
    def link_up(self) -> bool:  # type: ignore[override]
        raise FileNotFoundError("no carrier")

    @property
    def mtu(self) -> Any:  # type: ignore[override]
        if self.mtu_says is None:
            raise FileNotFoundError("no mtu")
        return self.mtu_says


async def test_port_that_cannot_tell_of_itself_is_one_without_a_link(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = PortOfALostCard()
    device = Net(port)
    async with attached(device) as front:
        (queue,) = await begin(front, PLAIN, 1)
        for _ in range(3):
            assert await queue.exchange([frame(60)], []) == []
    assert (device.from_guest.dropped, port.sent) == (3, [])
    for port.mtu_says in (70000, "1500"):
        assert device.read_config(10, 2) == bytes(2)
    assert "failed: its link is down" in caplog.text
    assert caplog.text.count("FileNotFoundError: no carrier") == 1
    assert "an MTU is a number up to 65535, and not 70000" in caplog.text


@pytest.mark.parametrize("kind", ["impaired", "captured"])
async def test_port_within_another_fails_alone(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """Its own run() is over, and a frame that it fails to send is lost; what is around it goes on."""
    port = OwnPort("run")
    capture = Capture(str(tmp_path / "file.pcapng"), ["port"])
    outer = (
        ImpairedPort(port, from_guest=Impairments(delay=0.1))
        if kind == "impaired"
        else CapturedPort(port, capture)
    )
    with capture, Net(outer) as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.run_host)
            await wait_all_tasks_blocked()
            async with attached(device) as front:
                (queue,) = await begin(front, PLAIN, 1)
                port.where = "send"
                assert await queue.exchange([frame(60)], []) == []
                await trio.sleep(1)
                port.where = ""
                assert await queue.exchange([frame(61)], []) == []
                await trio.sleep(1)
                assert [sent for _, sent in port.sent] == [frame(61)]
            nursery.cancel_scope.cancel()
    assert "Mistake: in run" in caplog.text
    assert "Mistake: in send" in caplog.text
