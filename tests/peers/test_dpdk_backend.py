"""DPDK's vhost library as the back-end of our front-end library."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from protocol.io.listener import listen
from protocol.virtio.features import Feature
from protocol.virtio.net import NetFeature
from tests.peers.cards import Card, frames
from tests.peers.testpmd import SECONDS, start_testpmd
from vhost_user import frontend
from vhost_user.frontend.dirty_pages import PAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.peers.testpmd import Testpmd
    from vhost_user.frontend import Frontend

pytestmark = pytest.mark.peers

MRG_RXBUF = Feature(NetFeature.MRG_RXBUF)
EVERYTHING = None
"""All that is offered, as `Frontend.negotiate()` has it."""

SPLIT, PACKED = Feature.NONE, Feature.RING_PACKED
RINGS = pytest.mark.parametrize("ring", [SPLIT, PACKED], ids=["split", "packed"])
FEATURES = pytest.mark.parametrize(
    "features",
    [
        Feature.VERSION_1,
        Feature.VERSION_1 | MRG_RXBUF,
        Feature.VERSION_1 | Feature.IN_ORDER,
        Feature.VERSION_1 | MRG_RXBUF | Feature.IN_ORDER | Feature.EVENT_IDX,
        Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX,
        EVERYTHING,
    ],
    ids=["plain", "merging", "in_order", "in_order-merging-event", "indirect-event", "everything"],
)


@asynccontextmanager
async def echo(
    directory: Path, devices: str = "", *options: str, client: bool = False
) -> AsyncIterator[Testpmd]:
    """Run a testpmd with a card that sends all frames back."""
    device = f"net_vhost0,iface={directory}/vhost.sock,client={client:d}{devices}"
    async with start_testpmd(directory, device, options=("-a", *options)) as testpmd:
        yield testpmd


def connect(
    directory: Path, *, memory_size: int = 64 << 20, resilient: bool = False
) -> AbstractAsyncContextManager[Frontend]:
    """Connect to that testpmd's card."""
    return frontend.connect(
        directory / "vhost.sock",
        memory_size=memory_size,
        patience=SECONDS,
        wait_for_backend=SECONDS,
        resilient=resilient,
    )


@RINGS
@FEATURES
async def test_frames_come_back(directory: Path, ring: Feature, features: Feature | None) -> None:
    async with echo(directory) as testpmd, connect(directory) as front:
        await front.negotiate(features, plus=ring)
        card = await Card.start(front)
        sent = frames(200)
        assert await card.get_back(sent) == sent
        assert await card.get_back(sent, pieces=3) == sent
        if MRG_RXBUF in front.features:
            assert await card.get_back(sent, room=300) == sent
        (counts,) = await testpmd.counts()
        assert counts.errors == 0
        await testpmd.quit()


@RINGS
@pytest.mark.parametrize("size", [16, 64, 1024])
async def test_rings_of_other_sizes(directory: Path, ring: Feature, size: int) -> None:
    async with echo(directory), connect(directory) as front:
        await front.negotiate(plus=ring)
        card = await Card.start(front, size=size)
        sent = frames(size + 100)
        assert await card.get_back(sent, together=min(size // 2, 32)) == sent


@RINGS
async def test_several_pairs_of_queues(directory: Path, ring: Feature) -> None:
    """Each frame comes back where it was sent."""
    async with echo(directory, ",queues=2", "--rxq=2", "--txq=2"), connect(directory) as front:
        await front.negotiate(plus=ring)
        cards = [await Card.start(front, pair=pair) for pair in range(2)]
        for seed, card in enumerate(cards):
            sent = frames(100, seed=seed)
            assert await card.get_back(sent) == sent


@RINGS
async def test_driver_begins_anew(directory: Path, ring: Feature) -> None:
    async with echo(directory), connect(directory) as front:
        await front.negotiate(plus=ring)
        sent = frames(100)
        for _ in range(3):
            card = await Card.start(front)
            assert await card.get_back(sent) == sent
            await front.reset()
        await front.set_features(Feature.VERSION_1 | PACKED.without(ring))
        card = await Card.start(front)
        assert await card.get_back(sent) == sent


@RINGS
async def test_queues_are_stopped_and_go_on(directory: Path, ring: Feature) -> None:
    async with echo(directory), connect(directory) as front:
        await front.negotiate(plus=ring)
        card = await Card.start(front, size=64)
        sent = frames(100)
        for _ in range(3):
            assert await card.get_back(sent) == sent
            for queue in (card.rx, card.tx):
                await front.stop_queue(queue)
            for queue in (card.rx, card.tx):
                await front.resume_queue(queue)
        assert await card.get_back(sent) == sent


@RINGS
async def test_goes_on_after_the_connection_was_lost(directory: Path, ring: Feature) -> None:
    async with echo(directory), connect(directory, resilient=True) as front:
        await front.negotiate(plus=ring)
        card = await Card.start(front)
        sent = frames(100)
        for _ in range(3):
            assert await card.get_back(sent) == sent
            await front.reconnect(wait_for_backend=SECONDS)


@RINGS
async def test_goes_on_with_another_testpmd_after_a_kill(directory: Path, ring: Feature) -> None:
    sent = frames(100)
    async with echo(directory) as testpmd, connect(directory, resilient=True) as front:
        await front.negotiate(plus=ring)
        card = await Card.start(front)
        assert await card.get_back(sent) == sent
        testpmd.program.kill()
        await testpmd.program.wait()
        (directory / "vhost.sock").unlink()
        async with echo(directory):
            await front.reconnect(wait_for_backend=SECONDS)
            assert await card.get_back(sent) == sent


@RINGS
async def test_backend_that_connects_to_us(directory: Path, ring: Feature) -> None:
    """So do Open vSwitch's ports for QEMU's server=on, each time that they are started."""
    sent = frames(100)
    with listen(str(directory / "vhost.sock")) as listener:
        async with (
            echo(directory, client=True) as testpmd,
            frontend.connect(stream=await listener.accept(), resilient=True) as front,
        ):
            await front.negotiate(plus=ring)
            card = await Card.start(front)
            assert await card.get_back(sent) == sent
            testpmd.program.kill()
            await testpmd.program.wait()
            async with echo(directory, client=True):
                await front.reconnect(stream=await listener.accept())
                assert await card.get_back(sent) == sent


@RINGS
async def test_memory_is_added_while_queues_run(directory: Path, ring: Feature) -> None:
    async with echo(directory), connect(directory, memory_size=1 << 18) as front:
        await front.negotiate(plus=ring)
        card = await Card.start(front, size=64)
        sent = frames(100)
        assert await card.get_back(sent) == sent
        await front.add_memory(1 << 21)
        assert await card.get_back(sent, room=1 << 17, together=4) == sent


@RINGS
async def test_pages_are_logged(directory: Path, ring: Feature) -> None:
    async with echo(directory), connect(directory) as front:
        await front.negotiate(plus=ring)
        card = await Card.start(front)
        pages = await front.start_log()
        try:
            sent = frames(10)
            assert await card.get_back(sent) == sent
            used = {queue.parts.device.address // PAGE for queue in (card.rx, card.tx)}
            assert used <= pages.pages()
            await front.stop_log()
            pages.clear()
            assert await card.get_back(sent) == sent
            assert pages.pages() == set()
        finally:
            pages.close()
