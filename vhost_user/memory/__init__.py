"""The guest's memory: regions, IOTLB, dirty log, in-flight file, and atomic operations."""

from vhost_user.memory.atomics import TOTAL_STORE_ORDER, fence
from vhost_user.memory.dirty_log import PAGE_SHIFT, DirtyLog, DirtyLogError
from vhost_user.memory.inflight_file import InflightBuffer, create_file, forget
from vhost_user.memory.iotlb import Access
from vhost_user.memory.mapping import MappingError, map_shared
from vhost_user.memory.regions import (
    BadAddressError,
    BadRegionError,
    GuestMemory,
    IotlbMissError,
    Region,
    guest_address_of,
)
from vhost_user.memory.sharing import is_private

__all__ = [
    "PAGE_SHIFT",
    "TOTAL_STORE_ORDER",
    "Access",
    "BadAddressError",
    "BadRegionError",
    "DirtyLog",
    "DirtyLogError",
    "GuestMemory",
    "InflightBuffer",
    "IotlbMissError",
    "MappingError",
    "Region",
    "create_file",
    "fence",
    "forget",
    "guest_address_of",
    "is_private",
    "map_shared",
]
