"""What Linux has for tap devices: the ioctls of /dev/net/tun (linux/if_tun.h)."""

from __future__ import annotations

import fcntl
import os
import struct
from enum import IntFlag

from protocol.fds import OwnedFd

DEVICE = "/dev/net/tun"
MAX_NAME = 15
"""Bytes of an interface's name."""

_SET_IFF = 0x400454CA
_SET_OFFLOAD = 0x400454D0
_GET_IFF = 0x800454D2
_SET_HEADER_SIZE = 0x400454D8
_SET_QUEUE = 0x400454D9
_SET_LITTLE_ENDIAN = 0x400454DC
_SET_CARRIER = 0x400454E2

_IFREQ = struct.Struct("16sH22x")
_INT = struct.Struct("i")


class TapFlag(IntFlag):
    """What a queue of a tap is like."""

    TAP = 0x0002
    MULTI_QUEUE = 0x0100
    ATTACH_QUEUE = 0x0200
    DETACH_QUEUE = 0x0400
    NO_PI = 0x1000
    VNET_HDR = 0x4000


class OffloadFlag(IntFlag):
    """What the reader of a tap takes; the kernel does the rest itself."""

    NONE = 0
    CSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    TSO_ECN = 0x08
    UFO = 0x10
    USO4 = 0x20
    USO6 = 0x40


def open_queue(name: str, *, multi_queue: bool) -> OwnedFd:
    """Open a queue of the tap `name`, which is made where there is none. Raises OSError.

    What is read and written begins with a virtio-net header. Nothing blocks.
    """
    fd = OwnedFd(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    flags = TapFlag.TAP | TapFlag.NO_PI | TapFlag.VNET_HDR
    if multi_queue:
        flags |= TapFlag.MULTI_QUEUE
    try:
        fcntl.ioctl(fd.fileno(), _SET_IFF, _IFREQ.pack(os.fsencode(name), flags))
    except OSError:
        fd.close()
        raise
    return fd


def flags_of(fd: int) -> TapFlag:
    """Return what the tap is like that `fd` is a queue of. Raises OSError where it is none."""
    _, flags = _IFREQ.unpack(fcntl.ioctl(fd, _GET_IFF, bytes(_IFREQ.size)))
    return TapFlag(flags)


def set_header(fd: int, size: int, *, little_endian: bool) -> None:
    """Use headers of `size` bytes, 10 or 12, of this byte order (or the machine's own). Raises OSError."""
    fcntl.ioctl(fd, _SET_LITTLE_ENDIAN, _INT.pack(little_endian))
    fcntl.ioctl(fd, _SET_HEADER_SIZE, _INT.pack(size))


def set_offloads(fd: int, offloads: OffloadFlag) -> None:
    """Say what the reader takes. Raises OSError for what the kernel does not know."""
    fcntl.ioctl(fd, _SET_OFFLOAD, int(offloads))


def set_attached(fd: int, attached: bool) -> None:
    """Ask the kernel to give frames to a queue of a tap with several, or no longer. Raises OSError."""
    flag = TapFlag.ATTACH_QUEUE if attached else TapFlag.DETACH_QUEUE
    fcntl.ioctl(fd, _SET_QUEUE, _IFREQ.pack(b"", flag))


def set_carrier(fd: int, on: bool) -> None:
    """Show the host that there is somebody at the other end. Raises OSError where it cannot be shown."""
    fcntl.ioctl(fd, _SET_CARRIER, _INT.pack(on))
