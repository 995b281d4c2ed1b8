"""A device that takes whatever some type of device is asked for, and what its tests ask."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from protocol.fds import OwnedFd
from tests.vhost_user.echo import Echo
from vhost_user import RefusedError

if TYPE_CHECKING:
    from protocol.vhost_user import ConfigFlag, Request
    from protocol.virtio.features import Feature
    from tests.vhost_user.raw_frontend import Frontend

NAME = UUID("00112233-4455-6677-8899-aabbccddeeff")


class Everything(Echo):
    """A device that takes whatever some type of device is asked for."""

    features = 1 << 5

    def __init__(self) -> None:
        super().__init__()
        self.shared_memory = {0: 0x1000, 3: 0x2000}
        self.asked: list[object] = []

    def negotiated(self, features: Feature) -> None:
        self.asked.append(features)

    def write_config(self, offset: int, data: bytes, flags: ConfigFlag) -> None:
        if offset >= len(self.config):
            raise RefusedError(f"there is no field at {offset}")
        self.config = self.config[:offset] + data + self.config[offset + len(data) :]
        self.asked.append(flags)

    def send_rarp(self, mac: bytes) -> None:
        self.asked.append(mac)

    def set_mtu(self, mtu: int) -> None:
        self.asked.append(mtu)

    def create_crypto_session(self, description: bytes) -> bytes:
        self.asked.append(description)
        return description + b"7"

    def close_crypto_session(self, session: int) -> None:
        self.asked.append(session)

    def set_gpu_socket(self, socket: OwnedFd) -> None:
        with socket:
            os.write(socket.fileno(), b"hello")

    def shared_object(self, uuid: UUID) -> OwnedFd:
        if uuid != NAME:
            raise RefusedError(f"there is no shared object {uuid}")
        return OwnedFd(os.memfd_create("test-object", os.MFD_CLOEXEC))


def file_of(fd: OwnedFd) -> str:
    return str(Path(f"/proc/self/fd/{fd.fileno()}").readlink())


async def is_refused(frontend: Frontend, message: Request) -> bool:
    reply = await frontend.try_request(message)
    assert reply is not None
    return reply.failed
