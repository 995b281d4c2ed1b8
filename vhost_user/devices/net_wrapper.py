"""PortWrapper: a port around a port, which passes everything on that a subclass does not change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhost_user.devices.net_host import Port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.virtio.features import Feature
    from protocol.virtio.net import NetFeature
    from vhost_user.devices.net_host import Receiver


class PortWrapper(Port):
    """Owns the port `inner`."""

    def __init__(self, inner: Port) -> None:
        self.inner = inner
        self.queue_pairs = inner.queue_pairs
        self.offloads = inner.offloads
        self.mtu = inner.mtu
        self.simulation = inner.simulation
        inner.link_changed = self._pass_link_on

    @property
    def link_up(self) -> bool:  # type: ignore[override]  # a plain attribute elsewhere
        """What the port within says."""
        return self.inner.link_up

    @property
    def dropped_from_guest(self) -> int:
        """What the port within has counted, and this one there."""
        return self.inner.dropped_from_guest

    @dropped_from_guest.setter
    def dropped_from_guest(self, value: int) -> None:
        self.inner.dropped_from_guest = value

    @property
    def dropped_to_guest(self) -> int:
        """What the port within has counted, and this one there."""
        return self.inner.dropped_to_guest

    @dropped_to_guest.setter
    def dropped_to_guest(self, value: int) -> None:
        self.inner.dropped_to_guest = value

    def set_features(self, features: Feature, header_size: int) -> None:
        """Pass it on."""
        self.header_size = header_size
        self.inner.set_features(features, header_size)

    def set_offloads(self, features: NetFeature) -> None:
        """Pass it on."""
        self.inner.set_offloads(features)

    def set_link(self, up: bool) -> None:
        """Pass it on."""
        self.inner.set_link(up)

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        """Pass it on."""
        return self.inner.send(pair, buffers, length)

    def flush(self, pair: int) -> None:
        """Pass it on."""
        self.inner.flush(pair)

    async def until_sendable(self, pair: int) -> None:
        """Pass it on."""
        await self.inner.until_sendable(pair)

    async def receive(self, pair: int, receiver: Receiver) -> None:
        """Pass it on."""
        await self.inner.receive(pair, receiver)

    async def run(self) -> None:
        """Pass it on."""
        await self.inner.run()

    def close(self) -> None:
        """Close the port within."""
        self.inner.close()

    def _pass_link_on(self) -> None:
        if self.link_changed is not None:
            self.link_changed()
