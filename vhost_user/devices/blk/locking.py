"""Locks on a disk's file, as QEMU takes them: two writers destroy an image.

QEMU keeps a byte of the file for each thing that a user of it does, and one for each that it lets nobody
else do meanwhile; who does it, has a shared lock on the byte (block/file-posix.c). The locks are those of
open file descriptions (fcntl(2), F_OFD_SETLK), and say nothing to programs that do not look at them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from enum import IntEnum
from typing import Protocol

from protocol.io.file_lock import other_lock, set_lock
from protocol.program.command_line import UserError

_log = logging.getLogger("vhost_user.blk")

_DOES, _FORBIDS = 100, 200
"""Where the bytes begin: of what a user does, and of what it lets no one else do."""


class _Use(IntEnum):
    """What a user of an image does, by the place of its byte."""

    READ = 0
    WRITE = 1
    RESIZE = 3


_FORBIDDEN = (_Use.WRITE, _Use.RESIZE)


class ImageInUseError(UserError):
    """Another program uses the image in a way that does not go with ours. One line with the remedy."""


class _HasFile(Protocol):
    def fileno(self) -> int:
        """Return the descriptor of the image."""


class ImageLock:
    """The right to read an image, or to write to it, while no other program writes to it or resizes it."""

    def __init__(self, disk: _HasFile, path: str, *, read_only: bool, insist: bool = False) -> None:
        """Lock `disk`'s own open file, which stays its owner's; what is closed is no longer locked.

        Where the file's filesystem knows no locks, nothing is locked, unless we `insist`.
        """
        self.is_held = False
        self._disk = disk
        self._path = path
        self._read_only = read_only
        self._insist = insist

    def take(self) -> None:
        """Have the lock. Raises ImageInUseError, and UserError where we insist and cannot lock."""
        if self.is_held:
            return
        uses = (_Use.READ,) if self._read_only else (_Use.READ, _Use.WRITE)
        try:
            # First take, then look: of two that do so at the same time, none overlooks the other.
            for use in uses:
                self._set(_DOES + use, fcntl.F_RDLCK)
            for use in _FORBIDDEN:
                self._set(_FORBIDS + use, fcntl.F_RDLCK)
            is_free = not any(self._is_taken(_FORBIDS + use) for use in uses) and not any(
                self._is_taken(_DOES + use) for use in _FORBIDDEN
            )
        except OSError as error:
            self.release()
            if error.errno in {errno.EAGAIN, errno.EACCES}:  # how fcntl(2) says that somebody has it
                raise self._in_use() from None
            self._cannot(error)
            return
        if not is_free:
            self.release()
            raise self._in_use()
        self.is_held = True

    def release(self) -> None:
        """Have it no longer."""
        self.is_held = False
        for first in (_DOES, _FORBIDS):
            try:
                self._set(first, fcntl.F_UNLCK, length=max(_Use) + 1)
            except OSError as error:
                _log.debug("%s: %s", self._path, error.strerror)

    def _cannot(self, error: OSError) -> None:
        if self._insist:
            raise UserError(
                f"cannot lock {self._path}: {error.strerror}; give --locking off, and see to it that"
                " no other program writes to it"
            )
        _log.debug("%s is not locked: %s", self._path, error.strerror)
        self.is_held = True

    def _in_use(self) -> ImageInUseError:
        return ImageInUseError(
            f"{self._path} is in use by another program that writes to it"
            f"{'' if self._read_only else ', or lets nobody write'}; end that, or give --incoming if a guest"
            " is to be migrated from there"
        )

    def _set(self, byte: int, kind: int, length: int = 1) -> None:
        set_lock(self._disk.fileno(), kind, byte, length)

    def _is_taken(self, byte: int) -> bool:
        """Tell whether somebody else has a lock on a byte."""
        return other_lock(self._disk.fileno(), byte, 1) is not None
