"""SharingCheck: whether the front-end shares the guest's memory, or kept a copy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vhost_user.memory.sharing import is_private

if TYPE_CHECKING:
    from vhost_user.memory.regions import GuestMemory

_log = logging.getLogger("vhost_user")


class SharingCheck:
    """Warns, once, of memory that QEMU was not told to share (share=on)."""

    def __init__(self, memory: GuestMemory, front_end_pid: int) -> None:
        self._memory = memory
        self._front_end_pid = front_end_pid
        self._warned = False
        self._checked: set[tuple[int, int]] = set()
        """The files of which it is known whether they are shared."""

    def check_files(self) -> None:
        """Look at the files of memory that were added."""
        files = self._memory.files
        for file, region in files.items():
            if file not in self._checked and is_private(file, self._front_end_pid):
                self._warned = True
                _log.warning(
                    "the guest's memory at %#x is not shared: the front-end has a copy of its own, of which"
                    " nothing is seen here; add share=on to QEMU's memory-backend object",
                    region.guest_address,
                )
        self._checked = set(files)

    def memory_not_shared(self, index: int) -> None:
        """Warn that the ring of queue `index` has nothing but zeros, although its driver kicks."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "queue %d: the driver kicks, but its ring is all zeros: the guest's memory is not shared;"
                " add share=on to QEMU's memory-backend object",
                index,
            )
