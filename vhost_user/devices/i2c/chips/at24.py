"""At24: serial EEPROMs of the 24C series, simulated (Linux's driver: at24)."""

from __future__ import annotations

import fcntl
import os
import stat
from typing import NamedTuple

from protocol.fds import OwnedFd
from vhost_user.devices.i2c.chips.chip import I2cChip, NackError
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.simulation import call

ERASED = 0xFF
"""What is in a byte that was never written."""


class Model(NamedTuple):
    """What there is to know of an EEPROM."""

    size: int
    """Bytes."""
    page: int
    """Bytes that one write can change; it goes on at the beginning of the page after its end."""
    pointer: int
    """Bytes by which the guest says where, within what has an address of its own."""

    @property
    def block(self) -> int:
        """Bytes at each of its addresses."""
        return min(self.size, 1 << 8 * self.pointer)


MODELS = {
    "24c01": Model(128, 8, 1),
    "24c02": Model(256, 8, 1),
    "24c04": Model(512, 16, 1),
    "24c08": Model(1024, 16, 1),
    "24c16": Model(2048, 16, 1),
    "24c32": Model(4096, 32, 2),
    "24c64": Model(8192, 32, 2),
    "24c128": Model(16384, 64, 2),
    "24c256": Model(32768, 64, 2),
    "24c512": Model(65536, 128, 2),
    "24c1024": Model(131072, 256, 2),
    "24c2048": Model(262144, 256, 2),
}


class At24(I2cChip):
    """An EEPROM, in memory or in a file."""

    def __init__(self, model: str = "24c02", file: str | None = None, *, read_only: bool = False) -> None:
        """Keep the content in `file`, which is made, or made longer, where it is too short; else in memory.

        A chip that is `read_only` acknowledges no data, as with its write-control pin high. Raises
        ValueError for a model that is not in MODELS, and for a file that is none, too long or another chip's,
        and OSError.
        """
        super().__init__()
        if model not in MODELS:
            raise ValueError(f"there is no EEPROM '{model}' here; there are {', '.join(MODELS)}")
        self.model = MODELS[model]
        self.address_count = self.model.size // self.model.block
        self._content = bytearray([ERASED]) * self.model.size
        self._pointer = 0
        self._read_only = read_only
        self._file = None if file is None else OwnedFd(_open(file))
        if self._file is not None:
            try:
                _lock(self._file)
                self._load(self._file)
            except BaseException:
                self._file.close()
                raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, data: bytes) -> None:
        """Set the pointer, and write what follows into the page that it points into."""
        page, width = self.model.page, self.model.pointer
        if len(data) < width:
            raise NackError(f"{len(data)} byte of an address of {width}")
        first = self.model.block * (self.addressed % self.address_count)
        self._pointer = first + int.from_bytes(data[:width], "big") % self.model.block
        data = data[width:]
        if not data:
            return
        if self._read_only:
            raise NackError("it is read-only")
        offset, first = self._pointer, self._pointer - self._pointer % page
        content = bytearray(self._content[first : first + page])
        for byte in data:
            content[self._pointer - first] = byte
            self._pointer = first + (self._pointer - first + 1) % page
        try:
            self._change(first, content)
        except OSError as error:
            raise NackError(f"its file cannot be written: {error.strerror}") from error
        self.emit("written", offset=offset, data=data.hex())

    def read(self, size: int) -> bytes:
        """Return bytes from the pointer on; after the last one comes the first one."""
        end = self._pointer + size
        data = (self._content * (1 + end // self.model.size))[self._pointer : end]
        self._pointer = end % self.model.size
        return bytes(data)

    @call
    def read_memory(self, offset: int = 0, size: int | None = None) -> bytes:
        """Return `size` bytes from `offset` on, by default up to the end, without the guest's knowledge."""
        end = self.model.size if size is None else offset + size
        self._check(offset, end)
        return bytes(self._content[offset:end])

    @call
    def write_memory(self, offset: int, data: bytes) -> None:
        """Change the content from `offset` on, also of a chip that is read-only."""
        self._check(offset, offset + len(data))
        try:
            self._change(offset, data)
        except OSError as error:
            raise CallError(f"its file cannot be written: {error.strerror}") from error

    @call
    def set_read_only(self, read_only: bool = True) -> None:
        """Let the guest write no longer, or again."""
        self._read_only = read_only

    @call
    def get_register(self, register: int) -> int:
        """Return a byte."""
        return self.read_memory(register, 1)[0]

    @call
    def set_register(self, register: int, value: int) -> None:
        """Change a byte, also of a chip that is read-only."""
        if not 0 <= value <= 0xFF:
            raise CallError(f"{value} is not a byte; give 0 to 255")
        self.write_memory(register, bytes([value]))

    def _check(self, start: int, end: int) -> None:
        if not 0 <= start <= end <= self.model.size:
            raise CallError(f"bytes {start} to {end} are not within the {self.model.size} that there are")

    def _change(self, offset: int, data: bytes | bytearray) -> None:
        """Put data into the file first, if there is one. Raises OSError."""
        if self._file is not None:
            os.pwrite(self._file.fileno(), data, offset)
        self._content[offset : offset + len(data)] = data

    def _load(self, file: OwnedFd) -> None:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("a pipe or a device keeps no content; give a file, which is made if need be")
        size = status.st_size
        if size > self.model.size:
            raise ValueError(f"the file has {size} bytes, more than the {self.model.size} of the EEPROM")
        kept = os.pread(file.fileno(), size, 0)
        self._content[: len(kept)] = kept
        os.pwrite(file.fileno(), self._content[len(kept) :], len(kept))


def _lock(file: OwnedFd) -> None:
    """Keep others from the file, until it is closed. Raises ValueError where one has it."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError("the file is that of another EEPROM, here or in another program") from None
    except OSError:
        pass  # there are no locks where it is


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
