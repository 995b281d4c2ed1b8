"""Addresses that the guest's IOMMU translates: asked for, waited for, denied, and taken away meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.vhost_user import Ack, BackendIotlbMsg, IotlbType
from vhost_user.backend.iommu import IommuResolver
from vhost_user.memory.iotlb import Access
from vhost_user.memory.regions import BadAddressError, GuestMemory, IotlbMissError
from vhost_user.transport import FrontendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from protocol.vhost_user import BackendMessage, Reply
    from vhost_user.transport import Channel

IOVA = 0x5000
MISS = IotlbMissError(IOVA, Access.READ)


class FrontEnd:
    """In the place of a channel, does as the test says with each question."""

    def __init__(self, answer: Callable[[], Reply | None]) -> None:
        self.asked: list[BackendMessage] = []
        self.told: list[BackendMessage] = []
        self._answer = answer

    async def request(self, message: BackendMessage) -> Reply | None:
        self.asked.append(message)
        await trio.lowlevel.checkpoint()
        return self._answer()

    def notify(self, message: BackendMessage, index: int = 0) -> None:
        self.told.append(message)

    def kinds(self) -> list[IotlbType]:
        """Return the kinds of what was asked and told."""
        return [message.type for message in self.asked + self.told if isinstance(message, BackendIotlbMsg)]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    memory.use_iotlb(True)
    yield memory
    memory.close()


def resolver(memory: GuestMemory, front: FrontEnd) -> IommuResolver:
    return IommuResolver(memory, lambda: cast("Channel", front))


def told(memory: GuestMemory) -> None:
    memory.update_iotlb(IOVA, 0x1000, 0, int(Access.READ))


async def test_front_end_without_acknowledgements_is_waited_for(memory: GuestMemory) -> None:
    front = FrontEnd(lambda: None)
    iommu = resolver(memory, front)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(iommu.resolve, MISS)
        await wait_all_tasks_blocked()
        iommu.changed()  # by a translation of another address
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        told(memory)
        iommu.changed()
    assert front.kinds() == [IotlbType.MISS]


async def test_address_that_is_known_meanwhile_is_not_asked_for(memory: GuestMemory) -> None:
    told(memory)
    front = FrontEnd(lambda: None)
    await resolver(memory, front).resolve(MISS)
    assert not front.asked


async def test_refusal_is_reported_as_a_fault_of_the_driver(memory: GuestMemory) -> None:
    def refuse() -> None:
        raise FrontendError("the front-end refuses it")

    front = FrontEnd(refuse)
    with pytest.raises(BadAddressError, match="the front-end refuses it"):
        await resolver(memory, front).resolve(MISS)
    assert front.kinds() == [IotlbType.MISS, IotlbType.ACCESS_FAIL]


async def test_translation_that_was_taken_away_at_once_is_asked_for_again(memory: GuestMemory) -> None:
    front: FrontEnd

    def answer() -> Reply:
        told(memory)
        if len(front.asked) == 1:
            memory.invalidate_iotlb(IOVA, 0x1000)
        return Ack(0)

    front = FrontEnd(answer)
    await resolver(memory, front).resolve(MISS)
    assert front.kinds() == [IotlbType.MISS] * 2


async def test_acknowledged_address_that_is_not_mapped_is_a_fault(memory: GuestMemory) -> None:
    front = FrontEnd(lambda: Ack(0))
    with pytest.raises(BadAddressError):
        await resolver(memory, front).resolve(MISS)
    assert front.kinds() == [IotlbType.MISS, IotlbType.ACCESS_FAIL]
