"""The eventfds of a ring: which one is signalled, which one is closed, and what takes their place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import pytest

from protocol.fds import OwnedFd
from protocol.io import EventFd
from protocol.vhost_user import Negotiation, VringCall, VringErr
from vhost_user.backend.dirty_logging import DirtyLogging
from vhost_user.backend.inflight import InflightNotes
from vhost_user.backend.iommu import IommuResolver
from vhost_user.backend.notifier import Notifier
from vhost_user.backend.sharing import SharingCheck
from vhost_user.memory.iotlb import Access
from vhost_user.memory.regions import BadAddressError, GuestMemory, IotlbMissError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.vhost_user import BackendMessage
    from vhost_user.transport import Channel


class Messages:
    """In the place of a channel, keeps the notifications."""

    def __init__(self) -> None:
        self.sent: list[tuple[BackendMessage, int]] = []

    def notify(self, message: BackendMessage, index: int = 0) -> None:
        self.sent.append((message, index))


class Rig:
    """A notifier of queue 3, and all that it needs."""

    def __init__(self) -> None:
        self.messages: Messages | None = None
        self.memory = GuestMemory()
        self.dirty = DirtyLogging()
        self.notifier = Notifier(
            3,
            self.memory,
            inband=lambda: cast("Channel | None", self.messages),
            iommu=IommuResolver(self.memory, lambda: None),
            dirty=self.dirty,
            sharing=SharingCheck(self.memory, os.getpid()),
        )


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.notifier.close()
    rig.dirty.close()
    rig.memory.close()


def passed(eventfd: EventFd) -> OwnedFd:
    """Return a descriptor as the front-end passes it."""
    return OwnedFd(os.dup(eventfd.fileno()))


def test_call_is_made_only_if_the_driver_wants_it(rig: Rig) -> None:
    with EventFd.create() as call:
        rig.notifier.set_call(passed(call), is_running=True)
        rig.notifier.published(wants_call=False)
        assert call.take() == 0
        rig.notifier.published(wants_call=True)
        assert call.take() == 1


def test_call_is_repeated_on_an_eventfd_that_takes_the_place_of_another(rig: Rig) -> None:
    with EventFd.create() as first, EventFd.create() as second:
        rig.notifier.set_call(passed(first), is_running=True)
        rig.notifier.call()
        rig.notifier.set_call(passed(second), is_running=True)
        assert (first.take(), second.take()) == (1, 1)
        rig.notifier.set_call(passed(first), is_running=True)
        assert first.take() == 0  # nothing was called on the one before


def test_messages_take_the_place_of_eventfds(rig: Rig) -> None:
    rig.notifier.call()  # where neither is there, nothing happens
    rig.messages = Messages()
    rig.notifier.call()
    rig.notifier.broke("it is a test")
    assert rig.messages.sent == [(VringCall(3), 3), (VringErr(3), 3)]
    with EventFd.create() as err:
        rig.notifier.set_err(passed(err))
        rig.notifier.broke("again")
        assert err.take() == 1
    assert len(rig.messages.sent) == 2


def test_descriptor_that_is_not_an_eventfd_is_closed(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for what in ("call", "err"):
        fd = OwnedFd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        number = fd.fileno()
        if what == "call":
            rig.notifier.set_call(fd, is_running=True)
            rig.notifier.call()
        else:
            rig.notifier.set_err(fd)
            rig.notifier.broke("it is a test")
        assert f"queue 3: its {what} descriptor is not an eventfd" in caplog.text
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


def test_dirty_log_is_told_of(rig: Rig) -> None:
    with EventFd.create() as event:
        rig.dirty.set_event(EventFd(os.dup(event.fileno())))
        rig.notifier.published(wants_call=False)
        assert event.take() == 0  # memory uses no log
        rig.dirty.signal()
        assert event.take() == 1


def test_memory_that_is_not_shared_is_warned_of_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        rig.notifier.memory_not_shared()
    assert caplog.text.count("share=on") == 1


async def test_translation_needs_a_channel(rig: Rig) -> None:
    miss = IotlbMissError(0x1000, Access.READ)
    with pytest.raises(BadAddressError, match="SET_BACKEND_REQ_FD"):
        await rig.notifier.resolve(miss)


def test_ring_without_buffer_has_no_part(caplog: pytest.LogCaptureFixture) -> None:
    notes = InflightNotes(Negotiation())
    assert notes.part(0, 16) is None
    notes.log_untracked(0, 16)
    assert not caplog.text
