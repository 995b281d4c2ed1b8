"""More clients and vectors than the C server can watch: nothing is lost, and nothing stays behind."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest
import trio

from tests.bench.load import JoinReport, build, join_command
from tests.bench.servers import process_memory
from tests.rig.programs.process import start
from tests.rig.programs.server import start_server

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 120
QUIET_SECONDS = 20
"""How long a machine under load may keep the server from sending before the rest counts as lost."""

PEAK_KIB = 64 * 1024


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("load"))


def require_open_files(count: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < count:
        pytest.fail(f"the server needs {count} open files, the hard limit is {hard}: raise it (ulimit -Hn)")


async def join(program: Path, socket: Path, clients: int, vectors: int) -> JoinReport:
    """Have the clients join, get everything, and all leave at once."""
    async with start(join_command(program, socket, clients, vectors, QUIET_SECONDS)) as running:
        await running.wait()
        return JoinReport.parse(running.output())


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize(("clients", "vectors"), [(1000, 2), (200, 8)])
async def test_every_client_gets_every_message_once(
    load: Path, tmp_path: Path, clients: int, vectors: int
) -> None:
    require_open_files(clients * (1 + vectors) + 100)
    with trio.fail_after(SECONDS):
        async with start_server(tmp_path, "-n", str(vectors), memfd=True) as server:
            await server.until_peers()
            files_before = server.program.file_descriptors()
            report = await join(load, server.socket, clients, vectors)
            assert report.lost == ""
            assert report.received == clients * (3 + clients * vectors)
            assert process_memory(server.program.pid).peak < PEAK_KIB
            await server.until_peers()
            assert server.program.file_descriptors() == files_before
