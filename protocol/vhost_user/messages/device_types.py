"""Messages for one type of device: net, crypto, gpu."""

from __future__ import annotations

from dataclasses import dataclass

from construct import Bytes, GreedyBytes, Padding, Struct

from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import FrontendMessage, Reply
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest
from protocol.vhost_user.payload import MAX_PAYLOAD, Payload, word

_CRYPTO_SESSION = Payload("crypto session", Struct("data" / GreedyBytes), range(MAX_PAYLOAD + 1))


@dataclass(repr=False)
class SendRarp(FrontendMessage):
    """net: broadcast a RARP in the guest's name, after a migration."""

    number = FrontendRequest.SEND_RARP
    payload = Payload("u64", Struct("mac" / Bytes(6), Padding(2)), {8})
    requirement = Requirement(protocol=ProtocolFeature.RARP, offered=True)
    mac: bytes


@dataclass(repr=False)
class NetSetMtu(FrontendMessage):
    """net: set the host's MTU."""

    number = FrontendRequest.NET_SET_MTU
    payload = word("mtu")
    requirement = Requirement(protocol=ProtocolFeature.MTU, offered=True)
    mtu: int


@dataclass(repr=False)
class CryptoSession(Reply):
    """crypto: the session's description, with its id set; QEMU's C structure, as bytes."""

    payload = _CRYPTO_SESSION
    data: bytes


@dataclass(repr=False)
class CreateCryptoSession(FrontendMessage):
    """crypto: create a session; its description is QEMU's C structure, as bytes."""

    number = FrontendRequest.CREATE_CRYPTO_SESSION
    payload = _CRYPTO_SESSION
    requirement = Requirement(protocol=ProtocolFeature.CRYPTO_SESSION)
    reply = CryptoSession
    data: bytes


@dataclass(repr=False)
class CloseCryptoSession(FrontendMessage):
    """crypto: close a session."""

    number = FrontendRequest.CLOSE_CRYPTO_SESSION
    payload = word("session")
    requirement = Requirement(protocol=ProtocolFeature.CRYPTO_SESSION)
    session: int


class GpuSetSocket(FrontendMessage):
    """gpu: pass the socket of the vhost-user-gpu protocol."""

    number = FrontendRequest.GPU_SET_SOCKET
    fd_counts = (1,)
