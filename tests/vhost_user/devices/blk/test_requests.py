"""Requests as drivers put them: well and badly, and what becomes of each."""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio.blk import REQUEST_HEADER, SEGMENT, BlkFeature, RequestStatus, RequestType
from tests.vhost_user.devices.blk import chains as driver
from vhost_user.devices.blk.disk import open_disk
from vhost_user.devices.blk.executor import Executor
from vhost_user.devices.blk.requests import (
    MAX_DISCARD_SECTORS,
    MAX_SEGMENTS,
    MAX_WRITE_ZEROES_SECTORS,
)
from vhost_user.devices.blk.transfer import transfer_now

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.vhost_user.devices.blk.chains import FakeChain
    from vhost_user.devices.blk.file import FileDisk
    from vhost_user.ring import Chain

SECTORS = 256
CONTENT = b"".join(number.to_bytes(4, "big") * 128 for number in range(SECTORS))
OK, IOERR, UNSUPP = RequestStatus

ALL = BlkFeature.FLUSH | BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[FileDisk]:
    with ExitStack() as stack:
        disk = open_disk(str(image))
        stack.callback(disk.close)
        yield disk


@pytest.fixture
def executor(disk: FileDisk) -> Executor:
    executor = Executor(disk, "serial number")
    executor.features = ALL
    return executor


class Queue:
    """Completes chains, and notes how many of those that are watched were completed at each publication."""

    def __init__(self, watched: Sequence[Chain] = ()) -> None:
        self.published: list[int] = []
        self._watched = watched

    def complete_together(self, done: Sequence[tuple[Chain, int]]) -> None:
        for chain, written in done:
            chain.complete(written)

    def flush(self) -> None:
        self.published.append(sum(chain.completed for chain in self._watched))


def serve_now(executor: Executor, chains: Sequence[Chain]) -> list[Chain]:
    """Serve in the loop's thread what needs no waiting; return the others."""
    disk = executor.disk
    may_write = not (disk.read_only or executor.write_through)
    return transfer_now(disk, chains, Queue(), may_write=may_write)


def now(executor: Executor, chain: FakeChain) -> FakeChain:
    """Serve a chain in the loop's thread, where it must need no waiting."""
    assert serve_now(executor, [chain]) == []
    assert chain.written == chain.writable_length
    return chain


def later(executor: Executor, chain: FakeChain) -> FakeChain:
    """Serve a chain that must be left to a thread."""
    assert serve_now(executor, [chain]) == [chain]
    assert not chain.completed
    executor.serve(chain)
    return chain


def sectors(first: int, count: int = 1) -> bytes:
    return CONTENT[first * 512 : (first + count) * 512]


def test_read_fills_the_driver_s_buffers_however_they_are_cut(executor: Executor) -> None:
    whole = now(executor, driver.read(3, 4096))
    assert whole.status is OK
    assert whole.data == sectors(3, 8)
    cut = now(executor, driver.read(3, 1, 4000, 95))
    assert (cut.status, cut.data) == (OK, whole.data)


def test_write_changes_the_sectors_and_no_others(executor: Executor, image: Path) -> None:
    assert now(executor, driver.write(5, b"a" * 100, b"b" * 924)).status is OK
    assert image.read_bytes() == sectors(0, 5) + b"a" * 100 + b"b" * 924 + CONTENT[7 * 512 :]


def test_last_sector_can_be_read_and_written(executor: Executor, image: Path) -> None:
    assert now(executor, driver.read(SECTORS - 1, 512)).data == sectors(SECTORS - 1)
    assert now(executor, driver.write(SECTORS - 1, b"z" * 512)).status is OK
    assert image.read_bytes() == CONTENT[:-512] + b"z" * 512


def test_requests_of_a_batch_are_served_in_their_order(executor: Executor) -> None:
    before, written, after = driver.read(9, 512), driver.write(9, b"n" * 512), driver.read(9, 512)
    assert serve_now(executor, [before, written, after]) == []
    assert (before.data, after.data) == (sectors(9), b"n" * 512)


@pytest.mark.parametrize("shared", [False, True])
def test_large_reads_are_each_published_with_what_was_done_before(image: Path, shared: bool) -> None:
    size = 1 << 17
    expected = CONTENT.ljust(8 * size, b"\0")
    image.write_bytes(expected)  # all of it, so that all is in the page cache: a hole would not be
    small = driver.read(1, 512)
    large = [driver.read(number * size // 512, size) for number in range(8)]
    beyond = driver.read(7 * size // 512 + 1, size)
    queue = Queue([small, *large])
    with closing(open_disk(str(image))) as disk:
        disk.shares_reads = shared
        left = transfer_now(disk, [small, *large[:4], beyond, *large[4:]], queue, may_write=True)
    assert left == [beyond]
    assert queue.published == list(range(2, 10))
    assert small.data == sectors(1)
    for number, chain in enumerate(large):
        assert (chain.status, chain.data) == (OK, expected[number * size :][:size])


@pytest.mark.parametrize("cut", [1, 8, 15])
def test_header_may_be_cut_anywhere(executor: Executor, cut: int) -> None:
    head = driver.header(RequestType.IN, 2)
    request = later(executor, driver.chain([head[:cut], head[cut:]], [512, 1]))
    assert (request.status, request.data) == (OK, sectors(2))


def test_header_may_share_a_buffer_with_the_data(executor: Executor, image: Path) -> None:
    request = driver.chain([driver.header(RequestType.OUT, 1) + b"x" * 512], [1])
    assert later(executor, request).status is OK
    assert image.read_bytes()[512:1024] == b"x" * 512


def test_status_may_share_a_buffer_with_the_data(executor: Executor) -> None:
    request = later(executor, driver.chain([driver.header(RequestType.IN, 2)], [513]))
    assert (request.status, request.data) == (OK, sectors(2))


def test_more_buffers_than_one_system_call_takes(executor: Executor) -> None:
    request = later(executor, driver.read(0, *[32] * 2048))
    assert (request.status, request.data) == (OK, sectors(0, 128))


def test_flush_and_its_legacy_name(
    executor: Executor, disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    monkeypatch.setattr(disk, "flush", lambda: flushed.append(1))
    assert later(executor, driver.flush()).status is OK
    assert later(executor, driver.chain([driver.header(5)], [1])).status is OK
    assert len(flushed) == 2


def test_get_id(executor: Executor) -> None:
    assert later(executor, driver.get_id()).data == b"serial number".ljust(20, b"\0")
    longer = later(executor, driver.get_id(32))
    assert (longer.status, longer.data) == (OK, b"serial number".ljust(32, b"\0"))


def test_id_of_twenty_bytes_has_no_end_mark(disk: FileDisk) -> None:
    assert later(Executor(disk, "x" * 20), driver.get_id()).data == b"x" * 20
    with pytest.raises(ValueError, match="more than 20"):
        Executor(disk, "x" * 21)


@pytest.mark.parametrize("flags", [0, 1])
def test_write_zeroes_of_several_segments(executor: Executor, image: Path, flags: int) -> None:
    request = driver.segments(RequestType.WRITE_ZEROES, [(1, 2, flags), (64, 16, flags), (5, 0, flags)])
    assert later(executor, request).status is OK
    expected = bytearray(CONTENT)
    expected[512:1536] = bytes(1024)
    expected[64 * 512 : 80 * 512] = bytes(16 * 512)
    assert image.read_bytes() == expected


def test_discard_touches_its_segments_only(executor: Executor, image: Path) -> None:
    assert later(executor, driver.segments(RequestType.DISCARD, [(8, 16, 0), (0, 0, 0)])).status is OK
    content = image.read_bytes()
    assert content[: 8 * 512] == sectors(0, 8)
    assert content[24 * 512 :] == CONTENT[24 * 512 :]


BEYOND = [
    driver.read(SECTORS, 512),
    driver.read(SECTORS - 1, 1024),
    driver.read((1 << 64) - 1, 512),
    driver.write(SECTORS, b"x" * 512),
    driver.write(SECTORS - 1, b"x" * 1024),
    driver.write((1 << 64) - 1, b"x" * 512),
    driver.segments(RequestType.DISCARD, [(0, 1, 0), (SECTORS - 1, 2, 0)]),
    driver.segments(RequestType.WRITE_ZEROES, [(0, 1, 0), ((1 << 64) - 1, 1, 0)]),
]
MALFORMED = [
    driver.chain([b""], [1]),
    driver.chain([driver.header(RequestType.FLUSH)[:15]], [1]),
    driver.read(0, 511),
    driver.read(0, 513),
    driver.write(0, b"x" * 511),
    driver.chain([driver.header(RequestType.IN), b"x" * 512], [1]),
    driver.chain([driver.header(RequestType.IN), b"x"], [512, 1]),
    driver.chain([driver.header(RequestType.OUT)], [512, 1]),
    driver.chain([driver.header(RequestType.OUT), b"x" * 512], [512, 1]),
    driver.chain([driver.header(RequestType.FLUSH)], [512, 1]),
    driver.get_id(19),
    driver.chain([driver.header(RequestType.GET_ID), b"x" * 20], [1]),
    driver.chain([driver.header(RequestType.DISCARD), bytes(15)], [1]),
    driver.chain([driver.header(RequestType.DISCARD), bytes(17)], [1]),
    driver.chain([driver.header(RequestType.DISCARD), bytes(16)], [512, 1]),
    driver.segments(RequestType.DISCARD, []),
    driver.segments(RequestType.DISCARD, [(0, 1, 0)] * (MAX_SEGMENTS + 1)),
    driver.segments(RequestType.DISCARD, [(0, MAX_DISCARD_SECTORS + 1, 0)]),
    driver.segments(RequestType.WRITE_ZEROES, [(0, MAX_WRITE_ZEROES_SECTORS + 1, 0)]),
]
UNSUPPORTED = [
    *(driver.chain([driver.header(kind)], [1]) for kind in (2, 3, 10, 14, 15, 16, 0x80000000, 0xFFFFFFFF)),
    driver.segments(RequestType.DISCARD, [(0, 1, 0), (1, 1, 1)]),
    driver.segments(RequestType.DISCARD, [(0, 1, 2)]),
    driver.segments(RequestType.WRITE_ZEROES, [(0, 1, 0), (1, 1, 2)]),
    driver.segments(RequestType.WRITE_ZEROES, [(0, 1, 0x80000001)]),
]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        *((chain, IOERR) for chain in BEYOND + MALFORMED),
        *((chain, UNSUPP) for chain in UNSUPPORTED),
    ],
)
def test_wrong_request_is_refused_and_changes_nothing(
    executor: Executor, image: Path, request_: FakeChain, status: RequestStatus
) -> None:
    assert later(executor, request_).status is status
    assert request_.data == bytes(len(request_.data)), "what counts as written was left as it was"
    assert image.read_bytes() == CONTENT


def test_request_without_a_byte_for_the_status_is_left_alone(executor: Executor, image: Path) -> None:
    later(executor, driver.chain([driver.header(RequestType.OUT), b"x" * 512], []))
    assert image.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", [RequestType.DISCARD, RequestType.WRITE_ZEROES])
def test_command_whose_feature_the_driver_did_not_turn_on(executor: Executor, kind: RequestType) -> None:
    executor.features = BlkFeature.FLUSH
    assert later(executor, driver.segments(kind, [(0, 1, 0)])).status is UNSUPP


def test_read_only_disk_is_read_and_never_written(image: Path) -> None:
    with ExitStack() as stack:
        disk = open_disk(str(image), read_only=True)
        stack.callback(disk.close)
        executor = Executor(disk)
        executor.features = ALL
        assert now(executor, driver.read(1, 512)).data == sectors(1)
        assert later(executor, driver.write(1, b"x" * 512)).status is IOERR
        assert later(executor, driver.flush()).status is OK
        for kind in (RequestType.DISCARD, RequestType.WRITE_ZEROES):
            assert later(executor, driver.segments(kind, [(0, 1, 0)])).status is IOERR
    assert image.read_bytes() == CONTENT


def test_file_that_was_cut_behind_our_back_gives_an_error(executor: Executor, image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(4 * 512)
    request = later(executor, driver.read(2, 2048))
    assert (request.status, request.data) == (IOERR, bytes(2048))


def test_error_of_the_host_is_the_request_s_alone_and_is_logged(
    executor: Executor, disk: FileDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write_now", full)
    monkeypatch.setattr(disk, "write", full)
    bad, good = driver.write(8, b"x" * 512), driver.read(0, 512)
    with caplog.at_level(logging.WARNING):
        assert serve_now(executor, [bad, good]) == [bad]
        executor.serve(bad)
    assert (bad.status, good.status) == (IOERR, OK)
    assert caplog.messages == [
        f"{disk.name}: write of 512 bytes at sector 8 failed: No space left on device; make room on its file"
        " system"
    ]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            driver.read(SECTORS - 1, 1024),
            "refused: read of 1024 bytes at sector 255, beyond the end, sector 256",
        ),
        (
            driver.write(SECTORS, b"x" * 512),
            "refused: write of 512 bytes at sector 256, beyond the end, sector",
        ),
        (
            driver.segments(RequestType.WRITE_ZEROES, [(1, 1, 0), (SECTORS, 1, 0)]),
            "refused: write-zeroes of 1024 bytes in 2 segments from sector 1, beyond the end, sector 256",
        ),
        (driver.read(3, 511), "refused: read at sector 3: 511 bytes of data, no multiple of 512"),
        (driver.get_id(19), "refused: get-id at sector 0: 19 bytes of room for an id of 20"),
        (driver.chain([b"short"], [1]), "refused: a header of 5 bytes"),
    ],
)
def test_request_that_cannot_be_done_is_logged_with_what_it_is(
    executor: Executor, disk: FileDisk, request_: FakeChain, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert later(executor, request_).status is IOERR
    (line,) = caplog.messages
    assert line.startswith(f"{disk.name}: {said}")


def test_what_a_driver_asks_to_find_out_is_not_logged(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert later(executor, driver.chain([driver.header(RequestType.GET_LIFETIME)], [1])).status is UNSUPP
    assert caplog.messages == []


def test_log_of_failures_has_an_end(
    executor: Executor, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many there are: a guest tries again and again."""
    for _ in range(1000):
        later(executor, driver.read(SECTORS, 512))
    executor.failures.settle(now=True)
    assert len(caplog.messages) < 20
    assert "990 more failed requests were left out" in caplog.messages[-1]


def test_write_through_waits_for_the_medium(
    executor: Executor, disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stable: list[bool] = []
    flushed: list[bool] = []
    monkeypatch.setattr(disk, "write", lambda *_, **how: stable.append(how["stable"]))
    monkeypatch.setattr(disk, "flush", lambda: flushed.append(True))
    executor.write_through = True
    assert later(executor, driver.write(0, b"x" * 512)).status is OK
    assert stable == [True]
    assert later(executor, driver.segments(RequestType.WRITE_ZEROES, [(0, 1, 0)])).status is OK
    assert flushed == [True]


REQUESTS = st.lists(
    st.one_of(
        st.builds(driver.read, st.integers(0, 40), st.sampled_from([512, 1024, 4096])),
        st.builds(
            driver.write,
            st.integers(0, 40),
            st.builds(
                lambda byte, count: bytes([byte]) * 512 * count, st.integers(0, 255), st.integers(0, 8)
            ),
        ),
        st.builds(
            driver.segments,
            st.just(RequestType.WRITE_ZEROES),
            st.lists(
                st.tuples(st.integers(0, 40), st.integers(0, 9), st.integers(0, 1)), min_size=1, max_size=3
            ),
        ),
    ),
    max_size=20,
)


@given(REQUESTS)
def test_disk_reads_like_a_plain_list_of_sectors(requests: list[FakeChain]) -> None:
    model = bytearray(40 * 512)
    with tempfile.NamedTemporaryFile() as file, ExitStack() as stack:
        file.truncate(len(model))
        disk = open_disk(file.name)
        stack.callback(disk.close)
        executor = Executor(disk)
        executor.features = ALL
        for request in requests:
            for chain in serve_now(executor, [request]):
                executor.serve(chain)
            assert request.status is play(model, request)
        file.seek(0)
        assert file.read() == model


def play(model: bytearray, request: FakeChain) -> RequestStatus:
    """Do what a request asks for on a plain array, and compare what was read."""
    head, *rest = request.readable_buffers
    kind, _, sector = REQUEST_HEADER.unpack(head)
    sent = b"".join(rest)
    if kind == RequestType.WRITE_ZEROES:
        rows = [*SEGMENT.iter_unpack(sent)]
        if any(first + count > 40 for first, count, _ in rows):
            return IOERR
        for first, count, _ in rows:
            model[first * 512 : (first + count) * 512] = bytes(count * 512)
        return OK
    length = len(sent) if kind == RequestType.OUT else len(request.data)
    start, end = sector * 512, sector * 512 + length
    if end > len(model):
        return IOERR
    if kind == RequestType.OUT:
        model[start:end] = sent
    else:
        assert request.data == model[start:end]
    return OK
