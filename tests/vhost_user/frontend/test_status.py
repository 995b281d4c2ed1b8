"""What the front-end tells of a driver's progress and its end: SET_STATUS, RESET_DEVICE, features again."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import pytest

import vhost_user
from protocol.vhost_user import GetStatus, ProtocolFeature, Status
from protocol.virtio.features import DeviceStatus, Feature
from tests.vhost_user.echo import Echo
from vhost_user import frontend
from vhost_user.backend import HANDLERS
from vhost_user.frontend import BackendError
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import trio

    from protocol.vhost_user import Request
    from vhost_user.backend import ConnectionState

ACCEPTED = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK
RUNNING = ACCEPTED | DeviceStatus.DRIVER_OK
BEGINNING = ["SET_STATUS status=ACKNOWLEDGE", "SET_STATUS status=ACKNOWLEDGE|DRIVER"]
SHOWN = {
    "GET_VRING_BASE": 2,
    "RESET_DEVICE": 1,
    "SET_FEATURES": 1,
    "SET_STATUS": 2,
    "SET_VRING_ENABLE": 2,
    "SET_VRING_NUM": 2,
}
"""The messages that these tests are about, and how many words of them."""

STARTING_0 = ["SET_VRING_NUM index=0", "SET_VRING_ENABLE index=0"]
END = "SET_STATUS status=RESET"


@pytest.fixture
def asked(caplog: pytest.LogCaptureFixture) -> Iterator[Asked]:
    with caplog.at_level(logging.DEBUG, "vhost_user"):
        yield Asked(caplog)


class Asked:
    """What a back-end was asked for, of the messages that these tests are about."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def since(self) -> list[str]:
        """Return the messages since the last time, each with its first field at most."""
        lines = [message[2:].split() for message in self._caplog.messages if message.startswith("< ")]
        self._caplog.clear()
        return [" ".join(line[: SHOWN[line[0]]]) for line in lines if line[0] in SHOWN]


def status(value: DeviceStatus) -> str:
    return f"SET_STATUS status={value}"


async def test_driver_tells_how_far_it_is(asked: Asked) -> None:
    async with driving(Echo()) as front:
        assert asked.since() == [*BEGINNING, "SET_FEATURES", status(ACCEPTED)]
        assert await front.ask(GetStatus()) == Status(ACCEPTED)
        await front.start_queue(0)
        assert asked.since() == [*STARTING_0, status(RUNNING)]
        await front.start_queue(1)
        assert asked.since() == ["SET_VRING_NUM index=1", "SET_VRING_ENABLE index=1"]
        assert await front.ask(GetStatus()) == Status(RUNNING)


async def test_reset_is_told_once_the_queues_are_stopped(asked: Asked) -> None:
    async with driving(Echo()) as front:
        await front.start_queue(0)
        await front.start_queue(1)
        asked.since()
        await front.reset()
        assert asked.since() == [
            *("GET_VRING_BASE index=0", "GET_VRING_BASE index=1"),
            *(END, "RESET_DEVICE"),
            *(*BEGINNING, "SET_FEATURES", status(ACCEPTED)),
        ]
        assert await front.ask(GetStatus()) == Status(ACCEPTED)
        queue = await front.start_queue()
        assert asked.since() == [*STARTING_0, status(RUNNING)]
        assert await queue.request(b"again", 5) == b"again"


async def test_driver_that_wants_other_features_begins_anew(asked: Asked) -> None:
    async with driving(Echo()) as front:
        asked.since()
        await front.set_features(Feature.VERSION_1)
        assert asked.since() == [END, *BEGINNING, "SET_FEATURES", status(ACCEPTED)]
        await front.start_queue()
        await front.reset()
        asked.since()
        await front.set_features(Feature.VERSION_1 | Feature.RING_PACKED)
        assert asked.since() == [END, *BEGINNING, "SET_FEATURES", status(ACCEPTED)]


async def test_features_change_under_a_queue_that_runs(asked: Asked) -> None:
    """QEMU turns LOG_ALL on and off in this way: the driver notices nothing."""
    async with driving(Echo()) as front:
        await front.start_queue()
        asked.since()
        await front.set_features(front.features | Feature.LOG_ALL)
        assert asked.since() == ["SET_FEATURES"]


async def test_nothing_is_told_without_status(asked: Asked) -> None:
    async with driving(Echo(), protocol=ProtocolFeature.REPLY_ACK) as front:
        await front.start_queue()
        await front.reset()
        queue = await front.start_queue()
        assert await queue.request(b"again", 5) == b"again"
        assert [line for line in asked.since() if "STATUS" in line or "RESET" in line] == []


async def test_next_backend_is_told_where_the_driver_is(
    asked: Asked, directory: Path, nursery: trio.Nursery
) -> None:
    path = directory / "echo"
    await nursery.start(partial(vhost_user.serve, Echo(), socket_path=path))
    async with frontend.connect(path) as front:
        await front.negotiate()
        queue = await front.start_queue()
        asked.since()
        await front.reconnect()
        assert asked.since() == [
            *(*BEGINNING, "SET_FEATURES", status(ACCEPTED)),
            *(*STARTING_0, status(RUNNING)),
        ]
        assert await queue.request(b"again", 5) == b"again"


async def test_device_that_takes_features_ok_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a device does that accepts each of the features, but not all of them together."""

    async def get_status(state: ConnectionState, request: Request) -> Status:
        return Status(state.status.without(DeviceStatus.FEATURES_OK))

    monkeypatch.setitem(HANDLERS, GetStatus, get_status)
    with pytest.raises(BackendError, match=r"does not accept the features .*VERSION_1.* together"):
        async with driving(Echo()):
            pass
