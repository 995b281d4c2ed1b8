"""What Python lacks for memory that other processes change: a full fence and an atomic or.

Words that somebody else reads or writes meanwhile are accessed through memoryview.cast() and an
index, which is one load or store. Never through struct.pack_into, which clears its target first, nor
through slices, which are copied byte by byte.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Fence: TypeAlias = Callable[[], None]
    OrByte: TypeAlias = Callable[[int, int], None]

MACHINE = platform.machine()
TOTAL_STORE_ORDER = MACHINE in {"x86_64", "i686", "i586", "i386"}
"""The processor keeps loads in order, and stores: only a store before a load needs a fence. Where this
is False, a fence goes between any two accesses whose order matters to somebody else."""

_SEQ_CST = 5
"""memory_order_seq_cst, as compilers number it."""

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_FUTEX_WAKE_OP = 5
_FUTEX_OP_OR_BIT = (2 | 8) << 28
"""FUTEX_OP_OR with FUTEX_OP_OPARG_SHIFT: or 1 << argument, where the argument is at bit 12."""


def libatomic() -> tuple[Fence, OrByte]:
    """Return the fence and the atomic or of the compilers' run-time library. Raises OSError without it."""
    # PyDLL keeps the GIL, a third of CDLL's cost; the fence has no argtypes because they double it.
    library = ctypes.PyDLL("libatomic.so.1")
    fence = library.atomic_thread_fence
    fence.restype = None
    fetch_or = library["__atomic_fetch_or_1"]
    fetch_or.argtypes = (ctypes.c_void_p, ctypes.c_uint8, ctypes.c_int)
    fetch_or.restype = ctypes.c_uint8

    def or_byte(address: int, bits: int) -> None:
        fetch_or(address, bits, _SEQ_CST)

    return partial(fence, _SEQ_CST), or_byte


def futex() -> tuple[Fence, OrByte]:
    """Return a fence and an atomic or that the kernel does for us: slower, but always there.

    Its FUTEX_WAKE_OP changes a word with a fully ordered atomic instruction.
    """
    number = _SYS_FUTEX.get(MACHINE)
    if number is None:
        raise OSError(f"no atomic operations on {MACHINE} without libatomic.so.1: install libatomic")
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long

    def or_bit(address: int, bit: int) -> None:
        word = ctypes.c_void_p(address)
        operation = ctypes.c_uint32(_FUTEX_OP_OR_BIT | bit << 12)
        none = ctypes.c_long(0)
        if syscall(ctypes.c_long(number), word, _FUTEX_WAKE_OP, none, none, word, operation) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def or_byte(address: int, bits: int) -> None:
        place = address & 3 if sys.byteorder == "little" else 3 - (address & 3)
        for bit in range(8):
            if bits >> bit & 1:
                or_bit(address & ~3, place * 8 + bit)

    fence = _lock_fence if TOTAL_STORE_ORDER else partial(or_bit, ctypes.addressof(_scratch), 0)
    return fence, or_byte


_scratch = ctypes.c_uint32()
_lock = threading.Lock()


def _lock_fence() -> None:
    # On x86 taking a lock is a locked instruction, hence a fence; on others it is half of one.
    with _lock:
        pass


def choose() -> tuple[Fence, OrByte]:
    """Return the faster of what there is. Raises OSError where there is nothing."""
    try:
        return libatomic()
    except OSError:
        return futex()


fence: Callable[[], None]
"""Let no load or store of this thread pass it, in either direction."""
or_byte: Callable[[int, int], None]
"""Set bits (second argument) of the byte at an address of this process (first argument), atomically."""
fence, or_byte = choose()
