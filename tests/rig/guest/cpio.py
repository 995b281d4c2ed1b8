"""Writes the archive that Linux unpacks as its first root file system ("newc" cpio)."""

from __future__ import annotations

import stat
from io import BytesIO
from pathlib import PurePosixPath

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


class Archive:
    """An initramfs in the making. Directories on the way to a file are made as needed.

    The format is the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
    """

    def __init__(self) -> None:
        self._content = BytesIO()
        self._directories = {PurePosixPath()}
        self._inode = 0

    def directory(self, path: str) -> None:
        """Add the directory `path`, and those above it, unless it is there."""
        wanted = PurePosixPath(path)
        for directory in (*reversed(wanted.parents), wanted):
            if directory not in self._directories:
                self._directories.add(directory)
                self._entry(str(directory), stat.S_IFDIR | 0o755)

    def file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Add a regular file."""
        self.directory(str(PurePosixPath(path).parent))
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link at `path` that points to `target`."""
        self.directory(str(PurePosixPath(path).parent))
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device."""
        self.directory(str(PurePosixPath(path).parent))
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        """Return the archive, with its end mark."""
        self._entry(_TRAILER, 0)
        return self._content.getvalue()

    def _entry(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device of the archive, device, name's length, checksum
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        self._content.write(_MAGIC + b"".join(b"%08x" % field for field in fields))
        self._padded(name)
        self._padded(content)

    def _padded(self, data: bytes) -> None:
        """Write `data` and what aligns its end to four bytes."""
        self._content.write(data)
        self._content.write(bytes(-self._content.tell() % 4))
