"""A back-end that runs out of descriptors or memory: a line of cause and remedy, and it serves on.

Each test runs the program, and lowers its limits meanwhile.
"""

from __future__ import annotations

import os
import resource
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.io import connect, listen
from protocol.vhost_user import (
    GetFeatures,
    GetInflightFd,
    Inflight,
    MemoryRegion,
    ProtocolFeature,
    SetMemTable,
    VringKick,
)
from tests.rig.programs.backend import command, start_backend, start_program, until_printed
from tests.rig.programs.limits import files_limited, limited, memory_limited
from tests.vhost_user.raw_frontend import ALL_PROTOCOL_FEATURES, INBAND, Frontend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from protocol.vhost_user import Request
    from tests.rig.programs.backend import RunningBackend
    from tests.rig.programs.process import Program

SECONDS = 60
LARGE = 1 << 18
NO_FILES = "Too many open files; raise the limit of open files (ulimit -n)"


@asynccontextmanager
async def resting(directory: Path) -> AsyncIterator[RunningBackend]:
    """A back-end that has served a front-end, and waits for the next; it leaves nothing open."""
    async with start_backend(directory, "rng") as backend:
        await serve_one(backend)
        before = backend.program.file_descriptors()
        yield backend
        leaving = backend.program.output().count("the front-end has left")
        await serve_one(backend)
        assert backend.program.output().count("the front-end has left") == leaving + 1
        assert backend.program.file_descriptors() == before
        assert "Traceback" not in backend.program.output()


async def serve_one(backend: RunningBackend) -> None:
    left = backend.program.output().count("the front-end has left")
    frontend = Frontend(await connect(str(backend.socket)))
    queue = await frontend.start()
    assert any((await queue.exchange([], [64]))[0])
    frontend.close()
    await until_printed(backend.program, "the front-end has left", left + 1)


@asynccontextmanager
async def connected(
    backend: RunningBackend, protocol: ProtocolFeature = ALL_PROTOCOL_FEATURES
) -> AsyncIterator[Frontend]:
    left = backend.program.output().count("the front-end has left")
    frontend = Frontend(await connect(str(backend.socket)))
    try:
        await frontend.negotiate(protocol=protocol)
        yield frontend
    finally:
        frontend.close()
    await until_printed(backend.program, "the front-end has left", left + 1)


def errors(program: Program) -> list[str]:
    return [line.partition("error: ")[2] for line in program.output().splitlines() if "error: " in line]


async def is_refused(frontend: Frontend, request: Request) -> bool:
    reply = await frontend.try_request(request)
    assert reply is not None
    return reply.failed


async def test_front_end_that_comes_at_the_limit_of_open_files_is_served_later(directory: Path) -> None:
    async with resting(directory) as backend:
        with files_limited(backend.program):
            frontend = Frontend(await connect(str(backend.socket)))
            await until_printed(backend.program, NO_FILES)
        await frontend.request(GetFeatures())
        frontend.close()
        await until_printed(backend.program, "the front-end has left", 2)
        assert errors(backend.program) == [f"no front-end can connect now: {NO_FILES}; trying again"]


def no_large_files(program: Program) -> AbstractContextManager[None]:
    return limited(program, resource.RLIMIT_FSIZE, LARGE)


@pytest.mark.parametrize(
    ("limit", "cause"),
    [
        (files_limited, NO_FILES),
        (no_large_files, "File too large; raise the limit of file sizes (ulimit -f)"),
    ],
)
async def test_in_flight_buffer_that_cannot_be_made_is_refused(
    directory: Path, limit: object, cause: str
) -> None:
    async with resting(directory) as backend, connected(backend) as frontend:
        with limit(backend.program):  # type: ignore[operator]
            assert await is_refused(frontend, GetInflightFd(0, 0, 1, LARGE // 16))
            await frontend.request(GetFeatures())
        assert errors(backend.program) == [f"GET_INFLIGHT_FD is refused: {cause}"]
        reply = await frontend.ask(Inflight, GetInflightFd(0, 0, 1, 16))
        reply.close()


async def test_kick_that_needs_a_descriptor_of_ours_is_refused(directory: Path) -> None:
    """In-band, the eventfd that a queue waits for is ours."""
    async with resting(directory) as backend, connected(backend, INBAND) as frontend:
        await frontend.share_memory()
        with files_limited(backend.program):
            assert await is_refused(frontend, VringKick(0))
        assert errors(backend.program) == [f"VRING_KICK is refused: {NO_FILES}"]
        await frontend.request(VringKick(0))


async def test_memory_that_there_is_no_address_space_for_is_refused(directory: Path) -> None:
    async with resting(directory) as backend, connected(backend) as frontend:
        size = 1 << 32
        region = MemoryRegion(0, size, 0)
        with frontend.memory.fd.dup() as file, memory_limited(backend.program):
            os.ftruncate(file.fileno(), size)
            assert await is_refused(frontend, SetMemTable((region,), fds=(file.dup(),)))
        (error,) = errors(backend.program)
        assert error.endswith(": Cannot allocate memory; free memory, or give this program more")
        await frontend.share_memory()


async def test_descriptors_that_are_lost_on_the_way_end_the_connection_alone(directory: Path) -> None:
    async with resting(directory) as backend, connected(backend) as frontend:
        with files_limited(backend.program), pytest.raises((EOFError, ConnectionResetError)):
            await frontend.share_memory()
        (error,) = errors(backend.program)
        assert error.startswith("the connection is given up: ")
        assert error.endswith("file descriptors were lost on receipt; raise the limit (ulimit -n)")


async def test_client_at_the_limit_of_open_files_connects_later(directory: Path) -> None:
    path = directory / "qemu.sock"
    async with start_program(directory, command("rng", "--connect", str(path)), "client") as program:
        await until_printed(program, "no front-end listens")
        with files_limited(program):
            await until_printed(program, NO_FILES)
        with listen(str(path)) as listener, trio.fail_after(SECONDS):
            frontend = Frontend(await listener.accept())
            await frontend.request(GetFeatures())
            frontend.close()
        assert f"error: cannot connect to {path}: {NO_FILES}; trying again" in program.output()


@pytest.mark.parametrize("files", [7, 9, 11, 13])  # with fewer, Python itself fails
async def test_limit_of_open_files_that_has_no_room_for_a_guest_is_named(directory: Path, files: int) -> None:
    few = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    argv = [*few, *command("rng", "--socket-path", str(directory / "rng.sock"))]
    done = await trio.run_process(argv, capture_stderr=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (
        1,
        f"vhost-user run rng: a guest takes more than {files} open files: raise the limit (ulimit -n)\n",
    )
