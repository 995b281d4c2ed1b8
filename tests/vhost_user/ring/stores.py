"""Shared memory as it was after every single store: what a process leaves that is killed there."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import vhost_user.ring

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType
    from typing import Any

CODE = str(Path(vhost_user.ring.__file__).parent)


@contextmanager
def every_store(memories: Sequence[memoryview]) -> Iterator[list[list[bytes]]]:
    """Record copies of `memories` whenever an instruction of the rings' code has changed one.

    The list begins with what was there before, and ends with what is there after the block.
    """
    snapshots = [[bytes(memory) for memory in memories]]

    def look() -> None:
        if any(memory != old for memory, old in zip(memories, snapshots[-1], strict=True)):
            snapshots.append([bytes(memory) for memory in memories])

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        look()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield snapshots
    finally:
        sys.settrace(before)
        look()
