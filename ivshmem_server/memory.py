"""The memory of an ivshmem server: a POSIX shm object, a file, or a memfd."""

# How it works: memfds and files without a name live as long as anybody has a descriptor or a mapping of
# them, and nothing of them is left after a crash. A POSIX object has a name, and so a life of its own:
#
#   1. It is created with the mode bit `_OUR_MARK`, or opened where it is there. An object without the bit,
#      or of another user, belongs to somebody else, and stays in the end.
#   2. `lock`, a second open file of the same object, takes flock(2) for the server's life. It cannot be `fd`:
#      clients are passed that, and would hold the lock for as long as they live. Another server that finds
#      the lock taken refuses to start. The kernel ends the lock with the process, however that ends.
#   3. The name may have been removed, or replaced, between the open and the lock: then it starts again at 1.
#   4. Only the holder of the lock gives an empty object its size, and nobody changes a size that is there:
#      peers of another server may have it mapped, and would die by SIGBUS.
#   5. `close()` removes the name if the object is ours and the name still leads to it, and then the lock.
#
# A crash leaves object, name and mode bit, without the lock. The next server of the same user finds the bit,
# takes the object over with what is in it, and removes it in the end. The ids of peers that still have it
# are known by the lock of `id_mark` on the open file that they were passed.

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import stat
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ivshmem_server.id_mark import ids_of_others, mark_ids
from ivshmem_server.memory_limits import free_memory, most_memory
from ivshmem_server.room import file_room, huge_page_size, is_in_memory, unfilled
from ivshmem_server.sizes import format_about, format_size, round_up_to_power_of_two
from protocol.fds import Closing, OwnedFd
from protocol.io.exhaustion import cause_and, cause_and_remedy
from protocol.io.posix_memory import SHM_DIRECTORY
from protocol.ivshmem.registers import MIN_MEMORY_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_NAME = 255
"""Most bytes of a file's name."""

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
"""How the POSIX object is opened: what is a link in its place is somebody else's trick."""

_OUR_MARK = stat.S_ISVTX
"""The mode bit of an object that we created. It means nothing for a file (chmod(2)), so that it can tell the
next server whose the object is, should this one be killed. Whoever sets another mode makes it his own."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_log = logging.getLogger("ivshmem_server")


class MemoryUnavailableError(Exception):
    """The shared memory cannot be had; the text is one line that says why and what to do."""


class SharedMemory(Closing):
    """Memory for guests and peers to share. `close()` lets go of it and removes what we created.

    Clients get a descriptor of it, so they keep the memory when the server has gone.
    """

    def __init__(
        self,
        fd: OwnedFd,
        size: int,
        kind: str,
        *,
        path: Path | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Take ownership of `fd`, memory of `size` bytes; `release` is called in the end."""
        self.fd = fd
        self.size = size
        self.kind = kind
        self.path = path
        self._release = release

    @classmethod
    def posix(cls, name: str, size: int) -> SharedMemory:
        """Create the POSIX shm object `name`, or use one that is there, of the same size and not in use.

        Raises MemoryUnavailableError: another server uses it, its size differs, or it cannot be made.
        """
        size = _rounded(size)
        path = _shm_path(name)
        try:
            return _open_posix(path, size)
        except OSError as error:
            remedy = "choose another name with -M"
            if not path.parent.is_dir():
                remedy = f"this system has no {path.parent}: use --memfd, or mount a tmpfs there"
            elif not os.access(path.parent, os.W_OK | os.X_OK):
                remedy = f"we may not write to {path.parent}: use --memfd"
            raise MemoryUnavailableError(
                f"cannot open shared memory {path}: {cause_and(error, remedy)}"
            ) from None

    @classmethod
    def directory(cls, path: str, size: int) -> SharedMemory:
        """Create a file without a name in the directory `path`, such as a mounted hugetlbfs.

        Raises MemoryUnavailableError: no such directory, no room, not enough huge pages.
        """
        try:
            number, name = tempfile.mkstemp(prefix="ivshmem-", dir=path)
            Path(name).unlink()
        except OSError as error:
            raise MemoryUnavailableError(
                f"cannot create a file in '{path}': {cause_and(error, 'give another directory with -m')}"
            ) from None
        with contextlib.ExitStack() as stack:
            fd = stack.enter_context(OwnedFd(number))
            page = huge_page_size(fd)
            size = _rounded(size, page or MIN_MEMORY_SIZE)
            _set_size(fd, size, path, huge=page is not None)
            stack.pop_all()
        return cls(fd, size, "hugetlbfs" if page else "directory", path=Path(path))

    @classmethod
    def memfd(cls, size: int, *, hugetlb: int | None = None) -> SharedMemory:
        """Create anonymous memory, sealed so that no client can resize it (which kills the others by SIGBUS).

        `hugetlb` is the size of the huge pages to use, bytes. Other memory is sparse: it may be larger
        than the machine's, with a warning. Raises MemoryUnavailableError.
        """
        size = _rounded(size, hugetlb or MIN_MEMORY_SIZE)
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if hugetlb:
            flags |= os.MFD_HUGETLB | (hugetlb.bit_length() - 1) << os.MFD_HUGE_SHIFT
        try:
            fd = OwnedFd(os.memfd_create("ivshmem", flags))
        except OSError as error:
            what, remedy = "memfd", "use -M or -m"
            if hugetlb:
                what = f"huge pages of {format_size(hugetlb)}"
                remedy = "/sys/kernel/mm/hugepages lists the sizes there are; give one with --hugetlb"
            raise MemoryUnavailableError(f"the kernel gives no {what}: {cause_and(error, remedy)}") from None
        with contextlib.ExitStack() as stack:
            stack.enter_context(fd)
            _set_size(fd, size, "a memfd", huge=hugetlb is not None)
            fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
            stack.pop_all()
        return cls(fd, size, "memfd")

    def preallocate(self) -> None:
        """Take all of the memory from the system now, so that no write to it can fail later.

        That takes a second for some gigabytes. Raises MemoryUnavailableError: there is not enough.
        """
        where = str(self.path) if self.path else "a memfd"
        needed = unfilled(self.fd)
        free = free_memory() if is_in_memory(self.fd) else None
        if free is not None and needed > free.size:
            raise MemoryUnavailableError(
                f"{where} cannot be given {format_size(needed)}, as {format_about(free.size)} are left"
                f" ({free.what}); free some, give less with -l, or leave out --prealloc"
            )
        try:
            os.posix_fallocate(self.fd.fileno(), 0, self.size)
        except OSError as error:
            raise _cannot_hold(where, self.size, error, huge=huge_page_size(self.fd) is not None) from None

    def ids_of_others(self) -> int:
        """Return below which number the ids are that peers of an earlier server may have on this memory.

        0 where there are none any more. Of clients of QEMU's own server nothing is known.
        """
        return ids_of_others(self.fd) if self.kind == "shm" else 0

    def mark_ids(self, count: int) -> None:
        """Record that ids below `count` were given, for a later server, while a client has the memory."""
        if self.kind == "shm":
            mark_ids(self.fd, count)

    def close(self) -> None:
        """Close the descriptor; remove the shm object if we created it, or a server did that was killed."""
        if self._release:
            self._release()
            self._release = None
        self.fd.close()

    def __str__(self) -> str:
        where = f" {self.path}" if self.path else ""
        return f"{self.kind}{where}, {format_size(self.size)}"


def _rounded(size: int, unit: int = MIN_MEMORY_SIZE) -> int:
    """Return the size that QEMU takes for one of `size` bytes in pages of `unit`; warn where it differs."""
    rounded = max(round_up_to_power_of_two(size), unit)
    if rounded != size:
        why = "a power of two" if rounded > unit else f"at least {format_size(unit)}"
        _log.warning("size %s rounded up to %s: it must be %s", format_size(size), format_size(rounded), why)
    return rounded


def _shm_path(name: str) -> Path:
    bare = name.removeprefix("/")
    if not bare or "/" in bare or "\0" in bare or bare in {".", ".."} or len(os.fsencode(bare)) > MAX_NAME:
        raise MemoryUnavailableError(
            f"'{name}' is not a name for POSIX shared memory; use one without '/', as ivshmem"
        )
    return SHM_DIRECTORY / bare


def _open_posix(path: Path, size: int) -> SharedMemory:
    while True:
        with contextlib.ExitStack() as stack:
            try:
                fd, created = _create_or_open(path)
            except FileNotFoundError:
                if not path.parent.is_dir():
                    raise
                continue  # its server removed it as we looked
            stack.enter_context(fd)
            if (lock := _lock(fd, path)) is None:
                continue  # its server removed it between our open and our lock
            stack.enter_context(lock)
            if created:
                stack.callback(path.unlink)
            _fit(fd, path, size)
            is_ours = created or _tell_of_found(fd, path)
            stack.pop_all()
            return SharedMemory(
                fd, size, "shm", path=path, release=partial(_release, lock, path if is_ours else None)
            )


def _tell_of_found(fd: OwnedFd, path: Path) -> bool:
    """Log whose the object is that was there; tell whether it is a server's of ours, and to be removed."""
    if is_ours := _is_ours(os.fstat(fd.fileno())):
        _log.warning(
            "shared memory %s is of a server that was killed, with what was in it; it is removed in the end",
            path,
        )
    else:
        _log.info("shared memory %s was there before, and stays in the end", path)
    return is_ours


def _is_ours(status: os.stat_result) -> bool:
    return bool(status.st_mode & _OUR_MARK) and status.st_uid == os.geteuid()


def _create_or_open(path: Path) -> tuple[OwnedFd, bool]:
    try:
        return OwnedFd(os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600 | _OUR_MARK)), True
    except FileExistsError:
        return OwnedFd(os.open(path, _OPEN)), False


def _lock(fd: OwnedFd, path: Path) -> OwnedFd | None:
    """Lock the object for this server's life; return the lock's owner, None where `path` is `fd` no more.

    The lock is on an open file of its own: clients are passed `fd` and would keep a lock on that.
    """
    try:
        lock = OwnedFd(os.open(path, _OPEN))
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise MemoryUnavailableError(
            f"shared memory {path} is in use by {_holder(fd)}; stop it or choose another name with -M"
        ) from None
    if _is_at(path, fd) and _is_at(path, lock):
        return lock
    lock.close()
    return None


def _holder(fd: OwnedFd) -> str:
    """Name the process that holds the lock on `fd`'s file, where /proc/locks is there to tell it."""
    status = os.fstat(fd.fileno())
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == file:
                return f"another server (pid {fields[4]})"
    return "another server"


def _is_at(path: Path, fd: OwnedFd) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd.fileno()))
    except FileNotFoundError:
        return False


def _fit(fd: OwnedFd, path: Path, size: int) -> None:
    """Give an empty object its size; refuse one of another size, which other programs may have mapped."""
    status = os.fstat(fd.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise MemoryUnavailableError(f"{path} is not a shared memory object; choose another name with -M")
    if status.st_size == 0:
        _set_size(fd, size, str(path), huge=False)
    elif status.st_size != size:
        raise MemoryUnavailableError(
            f"shared memory {path} exists with {format_size(status.st_size)}, not {format_size(size)}"
            f"{', of a server that was killed' if _is_ours(status) else ''};"
            " remove it if nobody uses it, or give its size with -l, or another name with -M"
        )
    elif (needed := unfilled(fd)) > (room := file_room(fd)).free:
        _log.warning(
            "shared memory %s exists, and fills %s more, of which %s are free: a guest that does would die;"
            " make room in %s",
            *(path, format_about(needed), format_about(room.free), path.parent),
        )


def _release(lock: OwnedFd, ours: Path | None) -> None:
    if ours and _is_at(ours, lock):  # or somebody has put another one there
        ours.unlink(missing_ok=True)
    lock.close()


def _set_size(fd: OwnedFd, size: int, where: str, *, huge: bool) -> None:
    """Give a new file its size. Raises MemoryUnavailableError where there is no room for it."""
    room = file_room(fd)
    if size > room.capacity > 0:
        raise MemoryUnavailableError(
            f"{where} can hold {format_about(room.capacity)}, not {format_size(size)}; give less with -l"
        )
    if size > room.free and room.capacity:
        raise MemoryUnavailableError(
            f"{where} has {format_about(room.free)} free of {format_about(room.capacity)}, not"
            f" {format_size(size)}, and a guest that fills the memory would die;"
            " make room, give less with -l, or use --memfd"
        )
    try:
        os.ftruncate(fd.fileno(), size)
        # Mapping reserves huge pages; without, a guest would die of SIGBUS where they run out. And
        # what we cannot map for its size, nobody can.
        mmap.mmap(fd.fileno(), size).close()
    except (OSError, OverflowError) as error:
        raise _cannot_hold(where, size, error, huge=huge) from None
    if is_in_memory(fd):
        _warn_beyond_memory(size, where)


def _cannot_hold(
    where: str, size: int, error: OSError | OverflowError, *, huge: bool
) -> MemoryUnavailableError:
    remedy = "add huge pages (vm.nr_hugepages) or give less with -l" if huge else "give less with -l"
    reason = f"beyond the address space; {remedy}"
    if isinstance(error, OSError):
        limit = error.errno in {errno.EFBIG, errno.EMFILE, errno.ENFILE}
        reason = cause_and_remedy(error) if limit else f"{error.strerror}; {remedy}"
    return MemoryUnavailableError(f"{where} cannot hold {format_size(size)}: {reason}")


def _warn_beyond_memory(size: int, where: str) -> None:
    most = most_memory()
    if most is not None and size > most.size:
        _log.warning(
            "%s of %s exceeds %s, %s: filling it runs out of memory, and the kernel kills for it",
            *(where, format_size(size), most.what, format_about(most.size)),
        )
