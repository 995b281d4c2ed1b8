"""GuestMemory: the guest's memory as the front-end shares it, by guest and by user address.

The only module that maps guest memory. Memory that is taken away stays mapped until the last view
into it is gone, so that a request in flight never loses its buffers.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from vhost_user.memory.iotlb import Access, Iotlb
from vhost_user.memory.mapping import Mapping, MappingError, address_of, map_shared, map_together

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from protocol.fds import OwnedFd
    from vhost_user.memory.dirty_log import DirtyLog

# How it works: the table is replaced as a whole, by the task that handles messages, in the same thread as
# everything that translates. `generation` changes with it, and with each IOTLB entry that is forgotten. Who
# keeps a view, a window or an address over a checkpoint compares generations before it is used again.
#
# Lifetimes: a mapping lives as long as the last view into it. Regions, rings and chains that are not
# given back hold views; a chain drops its own once it is published. An address (`flat_table`,
# `address_of()`) holds nothing: it is valid while its region is in the table, or a view of it is held, and
# must not be kept beyond that. The descriptor of a region is closed once it is mapped.
# The mappings are shared with the guest: whoever reads them copies before checking. A crash leaves nothing
# here; the next process is told the table again.

ADDRESS_LIMIT = 1 << 64


class BadRegionError(Exception):
    """The front-end described memory that cannot be. One line that says what is wrong with it."""


class BadAddressError(Exception):
    """An address that no memory is at, or not enough of it. One line that names it."""


class IotlbMissError(BadAddressError):
    """What the guest's IOMMU lets the device do at an address is not known.

    Send the front-end a miss message for `iova` and `access`, wait until it is done, and do the same
    again. A second miss at the same address means that the guest does not permit the access.
    """

    def __init__(self, iova: int, access: Access) -> None:
        super().__init__(f"the guest's IOMMU maps nothing at {iova:#x} for {access.name}")
        self.iova = iova
        self.access = access


@dataclass(frozen=True)
class Region:
    """A memory region, as in the payloads of SET_MEM_TABLE and ADD_MEM_REG."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int = 0

    @property
    def place(self) -> tuple[int, int, int]:
        """What a region is known by (REM_MEM_REG): both addresses and the size."""
        return self.guest_address, self.user_address, self.size

    def __str__(self) -> str:
        return f"{self.size:#x} bytes at guest address {self.guest_address:#x}"


class Window(NamedTuple):
    """A run of addresses of one kind, [start, end), and the memory there."""

    start: int
    end: int
    view: memoryview

    def cut(self, address: int, length: int) -> memoryview:
        """Return the memory of at most `length` bytes at `address`, which lies in the window."""
        offset = address - self.start
        return self.view[offset : offset + length]


class _Mapped(NamedTuple):
    region: Region
    file: tuple[int, int]
    """What the file is known by: its device and inode."""
    writable: Window
    readable: Window


class GuestMemory:
    """The memory table. Rings translate their own addresses again whenever `generation` has changed."""

    def __init__(self) -> None:
        self.generation = 0
        """Changes whenever something that was mapped may be elsewhere or gone."""
        self.invalidations = 0
        """How often the front-end invalidated IOTLB entries."""
        self.log: DirtyLog | None = None
        """Where writes are noted while VHOST_F_LOG_ALL is on. Whoever sets it keeps it."""
        self._mapped: list[_Mapped] = []
        self._table: tuple[tuple[int, int, int], ...] | None = ()
        """What `flat_table` returns; None until it is asked for after a change."""
        self._starts: list[int] = []
        self._iotlb: Iotlb | None = None
        self._together: WeakValueDictionary[tuple[tuple[int, int], ...], memoryview] = WeakValueDictionary()
        """Rings whose pieces are mapped together, by addresses and sizes of those."""

    @property
    def regions(self) -> tuple[Window, ...]:
        """The regions by guest address, in order."""
        return tuple(mapped.writable for mapped in self._mapped)

    @property
    def flat_table(self) -> tuple[tuple[int, int, int], ...]:
        """The regions as (guest address, length, address in this process), by guest address.

        For code that follows addresses itself. The addresses are valid until `generation` changes; whoever
        gives up the thread meanwhile holds views into the regions. Empty with an IOTLB: the driver's
        addresses are not guest addresses then, and `window()` is asked.
        """
        if self._iotlb is not None:
            return ()
        if self._table is None:
            self._table = tuple(_row(each) for each in self._mapped)
        return self._table

    @property
    def files(self) -> dict[tuple[int, int], Region]:
        """The files that regions are in, by device and inode, each with its first region."""
        return {mapped.file: mapped.region for mapped in reversed(self._mapped)}

    def __len__(self) -> int:
        return len(self._mapped)

    def __contains__(self, region: Region) -> bool:
        return any(mapped.region == region for mapped in self._mapped)

    def set_table(self, table: Sequence[tuple[Region, OwnedFd]]) -> None:
        """Replace everything (SET_MEM_TABLE); closes the descriptors. Where it raises, nothing changed.

        Raises BadRegionError.
        """
        try:
            mapped: list[_Mapped] = []
            for region, fd in table:
                mapped = _insert(mapped, self._find_or_map(region, fd))
            self._change(mapped)
        finally:
            for _, fd in table:
                fd.close()

    def add(self, region: Region, fd: OwnedFd) -> None:
        """Add a region (ADD_MEM_REG). Closes the descriptor. Raises BadRegionError, nothing changed."""
        with fd:
            self._change(_insert(self._mapped, _map(region, fd)))

    def remove(self, region: Region) -> None:
        """Remove the region of the same addresses and size (REM_MEM_REG). Raises BadRegionError."""
        rest = [mapped for mapped in self._mapped if mapped.region.place != region.place]
        if len(rest) == len(self._mapped):
            raise BadRegionError(
                f"there is no memory region of {region}, user address {region.user_address:#x}"
            )
        self._change(rest)

    def close(self) -> None:
        """Forget all regions and IOTLB entries."""
        self._iotlb = Iotlb() if self._iotlb is not None else None
        self._change([])

    def use_iotlb(self, on: bool) -> None:
        """Take addresses for I/O virtual ones from now on (VIRTIO_F_ACCESS_PLATFORM), or no longer.

        What was known is forgotten, as Linux's vhost does at each SET_FEATURES: a driver that begins again
        has an address space of its own, and QEMU tells of no end of the one that firmware had.
        """
        if on or self._iotlb is not None:
            self._iotlb = Iotlb() if on else None
            self.generation += 1

    def update_iotlb(self, iova: int, size: int, user_address: int, access: int) -> None:
        """Note an IOTLB update of the front-end. Raises BadRegionError for what cannot be."""
        if self._iotlb is None:
            raise BadRegionError("an IOTLB update came, but ACCESS_PLATFORM was not negotiated")
        if size <= 0 or iova + size > ADDRESS_LIMIT or not 1 <= access <= 3:
            raise BadRegionError(f"no IOTLB entry can be {size:#x} bytes at {iova:#x}, access {access}")
        if self._iotlb.update(iova, size, user_address, Access(access)):
            self.generation += 1

    def invalidate_iotlb(self, iova: int, size: int) -> None:
        """Forget what the IOMMU permitted for these addresses."""
        self.invalidations += 1
        if self._iotlb is not None and self._iotlb.invalidate(iova, size):
            self.generation += 1

    def window(self, address: int, write: bool) -> Window:
        """Return the memory around a guest address (an IOVA with an IOTLB): read-only unless `write`.

        Raises BadAddressError, and IotlbMissError where the front-end must be asked first.
        """
        if self._iotlb is not None:
            return self._iotlb_window(self._iotlb, address, write)
        place = bisect_right(self._starts, address) - 1
        if place >= 0:
            window = self._mapped[place].writable if write else self._mapped[place].readable
            if address < window.end:
                return window
        raise BadAddressError(
            f"no memory region holds guest address {address:#x}; if memory was plugged in there, its"
            " memory-backend object lacks share=on: QEMU passes on no other"
        )

    def translate(self, address: int, length: int, write: bool) -> list[memoryview]:
        """Return the memory of `length` bytes at a guest address: several views across region borders.

        Raises BadAddressError, and IotlbMissError where the front-end must be asked first.
        """
        views = []
        while length > 0:
            view = self.window(address, write).cut(address, length)
            views.append(view)
            address += len(view)
            length -= len(view)
        return views

    def translate_user(self, address: int, length: int) -> memoryview:
        """Return the memory of `length` bytes at a front-end's user address. Raises BadAddressError."""
        window = self._user_window(address)
        if address + length > window.end:
            raise BadAddressError(
                f"{length} bytes at user address {address:#x} are not within one memory region"
            )
        return window.cut(address, length)

    def ring_part(self, address: int, length: int) -> memoryview:
        """Return a part of a ring: by user address, or by IOVA with an IOTLB.

        A guest behind an IOMMU need not have a large ring in one piece: its pages are mapped so then.
        Raises BadAddressError, and IotlbMissError where the front-end must be asked first.
        """
        if self._iotlb is None:
            return self.translate_user(address, length)
        views = self.translate(address, length, write=True)
        return views[0] if len(views) == 1 else self._joined(address, views)

    def _joined(self, address: int, views: Sequence[memoryview]) -> memoryview:
        """Return the pieces of a ring as one view; the one that a ring has already, as long as it has it."""
        key = tuple((address_of(view), len(view)) for view in views)
        if (known := self._together.get(key)) is not None:
            return known
        try:
            joined = self._together[key] = map_together(views)
        except MappingError as error:
            raise BadAddressError(
                f"a ring's {sum(map(len, views))} bytes at {address:#x} are not in one piece: {error}"
            ) from None
        return joined

    def mark_written(self, views: Iterable[memoryview]) -> None:
        """Mark the pages of buffers that `translate()` gave as written, if writes are logged.

        Raises DirtyLogError.
        """
        if self.log is not None:
            for view in views:
                self.log.mark(guest_address_of(view), len(view))

    def _find_or_map(self, region: Region, fd: OwnedFd) -> _Mapped:
        """Keep what is mapped already: otherwise it would be mapped twice while requests refer to it."""
        known = (mapped for mapped in self._mapped if mapped.region == region and mapped.file == _file(fd))
        return next(known, None) or _map(region, fd)

    def _change(self, mapped: list[_Mapped]) -> None:
        self._mapped = mapped
        self._together.clear()  # their addresses may be another region's from now on
        self._table = None
        self._starts = [entry.region.guest_address for entry in mapped]
        self.generation += 1

    def _user_window(self, address: int) -> Window:
        for region, _, writable, _ in self._mapped:
            if region.user_address <= address < region.user_address + region.size:
                return Window(region.user_address, region.user_address + region.size, writable.view)
        if not self._mapped:
            raise BadAddressError(
                "the front-end has shared no memory at all; give QEMU -object"
                " memory-backend-memfd,id=mem,size=...,share=on and -machine memory-backend=mem"
            )
        raise BadAddressError(f"no memory region holds user address {address:#x}")

    def _iotlb_window(self, iotlb: Iotlb, iova: int, write: bool) -> Window:
        access = Access.WRITE if write else Access.READ
        entry = iotlb.find(iova, access)
        if entry is None:
            raise IotlbMissError(iova, access)
        window = self._user_window(entry.user(iova))
        shift = entry.start - entry.user_address
        start, end = max(entry.start, window.start + shift), min(entry.end, window.end + shift)
        view = window.cut(start - shift, end - start)
        return Window(start, end, view if write else view.toreadonly())


def guest_address_of(view: memoryview) -> int:
    """Return the guest address of a writable view into guest memory, also if that was taken away since."""
    mapping = view.obj
    assert isinstance(mapping, Mapping)
    region: Region = mapping.owner
    return region.guest_address + address_of(view) - mapping.start


def _map(region: Region, fd: OwnedFd) -> _Mapped:
    end = region.guest_address + region.size
    if end > ADDRESS_LIMIT or region.user_address + region.size > ADDRESS_LIMIT:
        raise BadRegionError(f"memory region of {region} reaches past the end of the address space")
    try:
        view = map_shared(fd, region.size, region.mmap_offset)
    except MappingError as error:
        raise BadRegionError(f"memory region of {region}: {error}") from error
    assert isinstance(view.obj, Mapping)
    view.obj.owner = region
    return _Mapped(
        region,
        _file(fd),
        Window(region.guest_address, end, view),
        Window(region.guest_address, end, view.toreadonly()),
    )


def _row(mapped: _Mapped) -> tuple[int, int, int]:
    return mapped.region.guest_address, mapped.region.size, address_of(mapped.writable.view)


def _file(fd: OwnedFd) -> tuple[int, int]:
    status = os.fstat(fd.fileno())
    return status.st_dev, status.st_ino


def _insert(table: list[_Mapped], new: _Mapped) -> list[_Mapped]:
    for old in table:
        if new.writable.start < old.writable.end and old.writable.start < new.writable.end:
            raise BadRegionError(f"memory regions overlap: {old.region} and {new.region}")
    return sorted([*table, new], key=lambda mapped: mapped.region.guest_address)
