"""The fence and the atomic or, of both makes: beside another process, and where one of them is missing."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from vhost_user.memory import atomics

if TYPE_CHECKING:
    from collections.abc import Iterator

MAKES = ["libatomic", "futex"]
SIZE = 4096

OTHER = """
import mmap, os, sys
from vhost_user.memory import atomics
from vhost_user.memory.mapping import address_of

memory = memoryview(mmap.mmap(int(sys.argv[1]), 4096))
fence, or_byte = getattr(atomics, sys.argv[2])()
words = memory.cast("Q")

def until(place, turn):
    while words[place] < turn:
        for _ in range(500):
            if words[place] >= turn: return
        os.sched_yield()

print("ready", flush=True)
"""


@pytest.fixture
def memory() -> Iterator[tuple[int, memoryview]]:
    """Return a file of SIZE bytes, and the memory there."""
    fd = os.memfd_create("shared", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    mapping = mmap.mmap(fd, SIZE)
    view = memoryview(mapping)
    yield fd, view
    view.release()
    mapping.close()
    os.close(fd)


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@contextmanager
def other(fd: int, make: str, code: str) -> Iterator[subprocess.Popen[str]]:
    """Run `code` in a process that has the memory too; the block begins when that is ready."""
    argv = [sys.executable, "-c", OTHER + code, str(fd), make]
    with subprocess.Popen(argv, pass_fds=[fd], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        except BaseException:
            process.kill()  # it waits for our next turn
            raise


def until(process: subprocess.Popen[str], words: memoryview, place: int, turn: int) -> None:
    """Wait for a word of the other process; where that takes long, give it the CPU: there may be but one."""
    spins = 0
    while words[place] < turn:
        assert process.poll() is None or words[place] >= turn
        spins += 1
        if spins % 100 == 0:
            os.sched_yield()


@pytest.mark.parametrize("make", MAKES)
def test_or_sets_bits_and_leaves_the_others(make: str, memory: tuple[int, memoryview]) -> None:
    _, or_byte = getattr(atomics, make)()
    _, view = memory
    view[:8] = b"\x01\x02\x03\x04\x05\x06\x07\x08"
    for place, bits in enumerate([0x80, 0, 0xFF, 0x04, 0x0A, 0x40, 0x18, 0x01]):
        or_byte(address(view) + place, bits)
    assert bytes(view[:8]) == b"\x81\x02\xff\x04\x0f\x46\x1f\x09"


@pytest.mark.parametrize("make", MAKES)
def test_or_loses_no_bit_of_another_process(make: str, memory: tuple[int, memoryview]) -> None:
    """Both set bits of the same bytes at the same time; a load, an or and a store would lose some."""
    rounds = 40
    fd, view = memory
    code = f"""
for turn in range(1, {rounds} + 1):
    words[511] = turn
    until(510, turn)
    for place in range(2048): or_byte(address_of(memory) + place, 0x55)
    words[509] = turn
"""
    _, or_byte = getattr(atomics, make)()
    words = view.cast("Q")
    with other(fd, make, code) as process:
        for turn in range(1, rounds + 1):
            until(process, words, 511, turn)
            view[:2048] = bytes(2048)
            words[510] = turn
            for place in range(2048):
                or_byte(address(view) + place, 0xAA)
            until(process, words, 509, turn)
            assert bytes(view[:2048]) == b"\xff" * 2048
    words.release()
    assert process.returncode == 0


@pytest.mark.parametrize("make", MAKES)
def test_fence_keeps_a_store_before_a_load(make: str, memory: tuple[int, memoryview]) -> None:
    """Each side stores its own word, then loads the other's: they cannot both find the old one."""
    rounds = 30_000
    fd, view = memory
    code = f"""
mine, theirs, seen = 0, 64, 128
for turn in range(1, {rounds} + 1):
    until(256, turn)
    words[mine] = turn
    fence()
    words[seen] = words[theirs]
    words[257] = turn
"""
    fence, _ = getattr(atomics, make)()
    words = view.cast("Q")
    lost = 0
    with other(fd, make, code) as process:
        for turn in range(1, rounds + 1):
            words[256] = turn
            words[64] = turn
            fence()
            found = words[0]
            until(process, words, 257, turn)
            lost += found < turn and words[128] < turn
    words.release()
    assert process.returncode == 0
    assert lost == 0


def test_kernel_does_it_where_libatomic_is_missing(
    monkeypatch: pytest.MonkeyPatch, memory: tuple[int, memoryview]
) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "PyDLL", missing)
    fence, or_byte = atomics.choose()
    or_byte(address(memory[1]) + 3, 0x11)
    fence()
    assert bytes(memory[1][:4]) == b"\0\0\0\x11"


def test_machine_with_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomics, "MACHINE", "vax")
    with pytest.raises(
        OSError, match=r"no atomic operations on vax without libatomic\.so\.1: install libatomic"
    ):
        atomics.futex()


def test_kernel_reports_memory_that_is_not_there() -> None:
    _, or_byte = atomics.futex()
    with pytest.raises(OSError, match="Bad address"):
        or_byte(8, 1)


def test_fence_of_a_machine_that_reorders_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on x86 a lock is no fence: the kernel's atomic operation is."""
    monkeypatch.setattr(atomics, "TOTAL_STORE_ORDER", False)
    calls = []
    monkeypatch.setattr(atomics, "_lock_fence", lambda: calls.append("lock"))
    fence, _ = atomics.futex()
    fence()
    assert calls == []
