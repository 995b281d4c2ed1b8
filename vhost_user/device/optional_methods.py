"""Methods that only some types of device have; a device class has those that it writes.

The front-end is offered the protocol feature of a method that is there. Where one is missing, the request
is refused. A method raises RefusedError where it refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from protocol.vhost_user.features import ProtocolFeature

if TYPE_CHECKING:
    from uuid import UUID

    from protocol.fds import OwnedFd


@runtime_checkable
class SendsRarp(Protocol):
    """net: a device that announces a guest after its migration."""

    def send_rarp(self, mac: bytes) -> None:
        """Broadcast a RARP for the address `mac`."""


@runtime_checkable
class TakesMtu(Protocol):
    """net: a device that is told the host's MTU."""

    def set_mtu(self, mtu: int) -> None:
        """Use the host's MTU."""


@runtime_checkable
class HasCryptoSessions(Protocol):
    """crypto: a device with sessions."""

    def create_crypto_session(self, description: bytes) -> bytes:
        """Create a session; return the description (a C structure of QEMU's) with its id set."""

    def close_crypto_session(self, session: int) -> None:
        """Close a session."""


@runtime_checkable
class TakesGpuSocket(Protocol):
    """gpu: a device that draws on a display of the front-end's."""

    def set_gpu_socket(self, socket: OwnedFd) -> None:
        """Use the socket of the vhost-user-gpu protocol; close it in the end."""


@runtime_checkable
class HasSharedObjects(Protocol):
    """A device that announces objects by `frontend.announce_object()`."""

    def shared_object(self, uuid: UUID) -> OwnedFd:
        """Return the dma-buf of an object, which the caller closes."""


OPTIONAL_METHODS: dict[type, ProtocolFeature] = {
    SendsRarp: ProtocolFeature.RARP,
    TakesMtu: ProtocolFeature.MTU,
    HasCryptoSessions: ProtocolFeature.CRYPTO_SESSION,
    TakesGpuSocket: ProtocolFeature.NONE,
    HasSharedObjects: ProtocolFeature.SHARED_OBJECT,
}
"""The kinds of device above, with the feature that each is offered with."""
