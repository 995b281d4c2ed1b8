"""Any text where people write something: faults of a disk, sizes of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ivshmem_server.sizes import format_size, parse_size
from tests.fuzz.harness import DefectError
from vhost_user.devices.blk.faults import parse_faults

if TYPE_CHECKING:
    from collections.abc import Iterator


def one_input(data: bytes) -> None:
    """Fail unless a text is understood, or ValueError says in one line why it is not."""
    text = data[1:].decode(errors="replace")
    try:
        if data[:1] == b"f":
            parse_faults(text)
        else:
            _check_size(parse_size(text))
    except ValueError as error:
        if len(str(error).split("\n")) != 1 and "\n" not in text:
            raise DefectError(f"not in one line: {str(error)!r}") from error


def _check_size(size: int) -> None:
    if not 0 < size < 1 << 63:
        raise DefectError(f"a size of {size}")
    again = format_size(size).removesuffix(" bytes")
    if parse_size(again) != size:
        raise DefectError(f"{size} bytes are written as {again!r}, which is another size")


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield rules and sizes."""
    yield "faults", b"fread:lba=100-200:error\nwrite:times=3:latency=10ms # slow\nany:stuck\n"
    yield "fault", b"fdiscard:lba=7:unsupported"
    for size in (b"4M", b"1.5GiB", b"4194304", b" 2 kb "):
        yield f"size_{size.decode().strip().replace(' ', '')}", b"s" + size
