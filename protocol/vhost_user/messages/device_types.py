"""Requests of a front-end: one device type's own."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.vhost_user import payloads, replies
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import FrontendMessage
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest


@dataclass(repr=False)
class SendRarp(FrontendMessage):
    """net: broadcast a RARP in the guest's name, after a migration."""

    number = FrontendRequest.SEND_RARP
    payload = payloads.MAC
    requirement = Requirement(protocol=ProtocolFeature.RARP, offered=True)
    mac: bytes


@dataclass(repr=False)
class NetSetMtu(FrontendMessage):
    """net: set the host's MTU."""

    number = FrontendRequest.NET_SET_MTU
    payload = payloads.MTU
    requirement = Requirement(protocol=ProtocolFeature.MTU, offered=True)
    mtu: int


@dataclass(repr=False)
class CreateCryptoSession(FrontendMessage):
    """crypto: create a session, described by QEMU's C structure, which is not taken apart."""

    number = FrontendRequest.CREATE_CRYPTO_SESSION
    payload = payloads.RAW
    requirement = Requirement(protocol=ProtocolFeature.CRYPTO_SESSION)
    reply = replies.CryptoSession
    data: bytes


@dataclass(repr=False)
class CloseCryptoSession(FrontendMessage):
    """crypto: close a session."""

    number = FrontendRequest.CLOSE_CRYPTO_SESSION
    payload = payloads.SESSION
    requirement = Requirement(protocol=ProtocolFeature.CRYPTO_SESSION)
    session: int


class GpuSetSocket(FrontendMessage):
    """gpu: pass the socket of the vhost-user-gpu protocol."""

    number = FrontendRequest.GPU_SET_SOCKET
    fd_counts = (1,)
