"""Protocol features of vhost-user (vhost-user.rst, "Protocol features")."""

from __future__ import annotations

from protocol.virtio.bits import Bits


class ProtocolFeature(Bits):
    """The bits of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES."""

    NONE = 0
    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    """User addresses are guest physical addresses: regions and rings have the same addresses."""
    SHMEM = 1 << 22
    GET_VRING_BASE_SKIP_DRAIN = 1 << 23
