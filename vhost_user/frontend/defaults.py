"""The features that a front-end turns on by default."""

from protocol.vhost_user import ProtocolFeature
from protocol.virtio.features import Feature

NOT_BY_DEFAULT = (
    Feature.LOG_ALL
    | Feature.ACCESS_PLATFORM
    | Feature.RING_PACKED
    | Feature.SR_IOV
    | Feature.NOTIF_CONFIG_DATA
    | Feature.ADMIN_VQ
)
"""Features that `negotiate()` turns on only on request."""

PROTOCOL_BY_DEFAULT = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CROSS_ENDIAN
    | ProtocolFeature.CRYPTO_SESSION
    | ProtocolFeature.CONFIG
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
    | ProtocolFeature.SHARED_OBJECT
    | ProtocolFeature.DEVICE_STATE
    | ProtocolFeature.SHMEM
)
"""Protocol features that `negotiate()` turns on by default where they are offered."""
