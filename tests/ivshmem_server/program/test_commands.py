"""ivshmem-client's commands for scripts, each in a process of its own, with a real server."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

import ivshmem_server
from protocol import __version__
from protocol.io import EventFd
from protocol.ivshmem import encode
from tests.ivshmem_server.clients import SECONDS, serving
from tests.ivshmem_server.peers import following, next_joined, rung
from tests.ivshmem_server.program.client_program import error, output, run, running
from tests.ivshmem_server.scripted import ID, MEMORY, PEER, US, VERSION, scripted
from tests.rig.programs.process import CLOSED
from tests.rig.programs.server import start_server

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server"


# dump


async def test_dump_tells_who_is_there(path: Path) -> None:
    async with serving(path, vectors=2), ivshmem_server.connect(path, vectors=1):
        assert await output("dump", "-S", path) == "us: peer 1, 2 vectors\nmemory: 1 MiB\npeer 0: 2 vectors\n"


async def test_dump_as_json(path: Path) -> None:
    async with serving(path, vectors=2), ivshmem_server.connect(path, vectors=1):
        document = json.loads(await output("-S", path, "dump", "--json"))
    assert document == {"id": 1, "vectors": 2, "memory": 1 << 20, "peers": [{"id": 0, "vectors": 2}]}


async def test_verbose_says_on_standard_error_what_it_joined(path: Path) -> None:
    async with serving(path):
        done = await run("-v", "dump", "-S", path)
    assert done.err == f"connected to {path}\nus: peer 0, 1 vector\nmemory: 1 MiB\n"


# ring


async def test_ring_interrupts_one_vector(path: Path) -> None:
    async with serving(path, vectors=2), ivshmem_server.connect(path) as peer:
        assert await output("ring", peer.id, "0x1", "-S", path) == ""
        assert await peer.wait(1) == 1
        assert await rung(peer) == []


async def test_ring_can_mean_all_vectors_and_all_peers(path: Path) -> None:
    async with (
        serving(path, vectors=2),
        ivshmem_server.connect(path) as first,
        ivshmem_server.connect(path) as second,
    ):
        await output("ring", first.id, "all", "-S", path)
        assert (await rung(first), await rung(second)) == ([0, 1], [])
        await output("ring", "all", "1", "-S", path)
        assert (await rung(first), await rung(second)) == ([1], [1])
        await output("ring", "all", "all", "-S", path)
        assert (await rung(first), await rung(second)) == ([0, 1], [0, 1])


async def test_ring_of_somebody_who_is_not_there_is_an_error(path: Path) -> None:
    async with serving(path, vectors=2):
        assert "no other peer is connected; attach a guest" in await error("ring", "all", "0", "-S", path)
        async with ivshmem_server.connect(path):
            assert "peer 9 is not connected; " in await error("ring", "9", "0", "-S", path)
            assert "peer 9 is not connected; " in await error("ring", "9", "all", "-S", path)
            assert "has no vector 2, only 0..1" in await error("ring", "0", "2", "-S", path)


@pytest.mark.parametrize(
    "arguments",
    [["ring", 0, 0], ["ring", 0, "all"], ["ring", 0, 9], ["ping", 0], ["pong", 0]],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
async def test_id_that_is_given_to_ourselves_means_somebody_who_is_not_there(
    path: Path, arguments: list[object]
) -> None:
    async with serving(path):
        said = await error(*arguments, "-S", path)
    assert "peer 0 is ourselves, and besides us there is nobody; attach a guest or another client" in said


async def test_our_own_id_is_told_with_who_else_is_there(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path), ivshmem_server.connect(path):
        assert "peer 2 is ourselves, and besides us there is peer 0 and peer 1" in await error(
            "ring", 2, 0, "-S", path
        )


# wait


async def test_wait_ends_with_the_last_ring_that_it_waits_for(path: Path) -> None:
    async with serving(path, vectors=2), ivshmem_server.connect(path) as peer:
        changes = peer.changes()
        async with running("wait", "1", "--count", "3", "-S", path) as client:
            other = await next_joined(changes)
            peer.ring(other, 0)
            for _ in range(2):
                peer.ring(other, 1)
                assert await client.line() == "receive notification vector=1 count=1"
            peer.ring(other, 1)
            assert await client.wait() == 0


async def test_wait_names_what_did_not_come_in_time(path: Path) -> None:
    async with serving(path):
        said = await error("wait", "0", "--timeout", "0.1", "-S", path)
        assert "0 of 1 ring came on vector 0 within 0.1 s; is anybody ringing peer 0?" in said
        assert "we have no vector 1, only 0..0" in await error("wait", "1", "-S", path)


# watch


async def test_watch_prints_what_happens_as_it_happens(path: Path) -> None:
    async with (
        serving(path, vectors=2),
        ivshmem_server.connect(path) as peer,
        running("watch", "-S", path) as client,
    ):
        assert [await client.line() for _ in range(3)] == [
            "us: peer 1, 2 vectors",
            "memory: 1 MiB",
            "peer 0: 2 vectors",
        ]
        async with ivshmem_server.connect(path) as other:
            assert await client.line() == f"peer {other.id} joined with 2 vectors"
            other.ring(1, 1)
            assert await client.line() == "receive notification vector=1 count=1"
        assert await client.line() == f"peer {other.id} left"
        peer.ring(1)
        assert await client.line() == "receive notification vector=0 count=1"


async def test_watch_as_json_goes_on_when_the_server_has_died(tmp_path: Path) -> None:
    async with (
        start_server(tmp_path, memfd=True) as server,
        ivshmem_server.connect(server.socket) as peer,
        running("watch", "--json", "-S", server.socket) as client,
    ):
        events = [json.loads(await client.line())]
        async with ivshmem_server.connect(server.socket):
            events.append(json.loads(await client.line()))
        events.append(json.loads(await client.line()))
        server.program.kill()
        await server.program.wait()
        events.append(json.loads(await client.line()))
        peer.ring(1)
        events.append(json.loads(await client.line()))
    times = [event.pop("time") for event in events]
    assert times == sorted(times)
    assert events == [
        {"event": "connected", "id": 1, "vectors": 1, "memory": 4 << 20, "peers": [{"id": 0, "vectors": 1}]},
        {"event": "joined", "id": 2, "vectors": 1},
        {"event": "left", "id": 2},
        {"event": "server-gone"},
        {"event": "interrupt", "vector": 0, "count": 1},
    ]


# ping, pong

PING = ["ping", 0, "--interval", 0, "--timeout", SECONDS]


async def test_ping_times_the_answers_of_pong(path: Path) -> None:
    async with serving(path, vectors=2), running("pong", "--vector", "1", "-S", path) as pong:
        assert await pong.line() == "peer 0 answers on vector 1"
        lines = (await output(*PING, "--vector", 1, "--count", 3, "-S", path)).splitlines()
    assert len(lines) == 4
    times = [float(re.fullmatch(r"answer from peer 0: time=([\d.]+) us", line)[1]) for line in lines[:3]]  # type: ignore[index]
    summary = re.fullmatch(
        r"3 rings, round trip min ([\d.]+) us, median ([\d.]+) us, 99% ([\d.]+) us, max ([\d.]+) us", lines[3]
    )
    assert summary is not None
    low, median, most, high = map(float, summary.groups())
    assert [low, median, high] == sorted(times)
    assert most == high


async def test_quiet_ping_prints_the_summary_only(path: Path) -> None:
    async with serving(path), running("pong", "-S", path) as pong:
        await pong.line()
        assert (await output(*PING, "-q", "--count", 5, "-S", path)).startswith("5 rings, ")


async def test_pong_answers_a_peer_of_which_it_learns_after_the_ring(path: Path) -> None:
    async with scripted(path, VERSION, ID, MEMORY) as server, running("pong", "-S", path) as pong:
        with EventFd.create() as ours, EventFd.create() as newcomers, trio.fail_after(SECONDS):
            await server.sent.wait()
            assert server.stream is not None
            await server.stream.send(encode(US), [ours.fileno()])
            await pong.line()
            ours.signal()
            while select.select([ours], [], [], 0)[0]:
                await trio.lowlevel.checkpoint()
            await server.stream.send(encode(PEER), [newcomers.fileno()])
            assert await newcomers.wait() == 1
            ours.signal()
            assert await newcomers.wait() == 1


async def test_ping_names_a_peer_that_does_not_answer(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path):
        said = await error("ping", 0, "--timeout", 0.1, "-S", path)
        assert "peer 0 did not answer within 0.1 s; let it run 'ivshmem-client pong --vector 0'" in said
        assert "peer 7 is not connected" in await error("ping", 7, "-S", path)


async def test_pong_answers_only_the_peer_that_is_named(path: Path) -> None:
    async with (
        serving(path),
        ivshmem_server.connect(path) as first,
        ivshmem_server.connect(path) as second,
        running("pong", second.id, "-S", path) as pong,
    ):
        await pong.line()
        first.ring(2)
        with trio.fail_after(SECONDS):
            assert await second.wait() == 1
        assert await rung(first) == []


# What all commands have in common


async def test_missing_server_is_named_with_how_to_start_one(path: Path) -> None:
    said = await error("dump", "-S", path)
    assert f"no server listens on {path}; start one with 'ivshmem-server -S {path}'" in said


async def test_server_that_comes_up_late_is_waited_for(path: Path) -> None:
    async with running("dump", "-S", path, "--wait-for-server", SECONDS) as client:
        await trio.sleep(0.3)  # nothing shows when it has looked for the first time
        async with serving(path):
            assert await client.line() == "us: peer 0, 1 vector"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("file", "{} is not a socket; "),
        ("directory", "{} is not a socket; "),
        ("long", "cannot connect to {}"),
    ],
)
async def test_path_that_is_no_socket_is_named(tmp_path: Path, kind: str, said: str) -> None:
    path = tmp_path / ("x" * 120 if kind == "long" else "path")
    if kind == "file":
        path.touch()
    if kind == "directory":
        path.mkdir()
    line = await error("dump", "-S", path)
    assert said.format(path) in line


async def test_socket_that_we_may_not_use_is_named(path: Path) -> None:
    async with serving(path):
        await trio.Path(path).chmod(0)
        done = await run("dump", "-S", path, powerless=True)
    assert done.code == 1
    assert done.err.startswith(f"ivshmem-client: no permission to connect to {path}; ")


async def test_fault_of_the_server_is_one_line(path: Path) -> None:
    async with scripted(path, (3,), ID):
        assert "the server speaks protocol version 3" in await error("dump", "-S", path)


async def test_server_that_dies_in_the_setup_is_one_line(path: Path) -> None:
    async with scripted(path, VERSION, ID, then_close=True):
        assert "closed during set-up, where the shared memory was due" in await error("dump", "-S", path)


async def test_expected_vectors_are_checked(path: Path) -> None:
    async with serving(path, vectors=2):
        assert "gives 2 of the 3 vectors" in await error("dump", "--vectors", "3", "-S", path)
        assert (await output("--vectors", "1", "-S", path, "dump")).startswith("us: peer 0, 1 vector\n")


@pytest.mark.parametrize(
    "arguments",
    [["wait", "0"], ["watch"], ["pong"], ["ping", "0", "--timeout", "9"], []],
    ids=["wait", "watch", "pong", "ping", "prompt"],
)
async def test_ctrl_c_ends_it_quietly_with_130(path: Path, arguments: list[str]) -> None:
    async with (
        serving(path),
        ivshmem_server.connect(path) as peer,
        running(*arguments, "-S", path) as client,
    ):
        changes = peer.changes()
        await next_joined(changes)
        await trio.sleep(0.1)  # nothing shows that its command has begun
        client.interrupt()
        assert await client.wait() == 130
        assert await client.stderr.receive_some() == b""


async def test_ctrl_c_that_is_ignored_stays_ignored(path: Path) -> None:
    """A shell starts the background jobs of a script so."""
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    async with serving(path), running("pong", "-S", path, launcher=ignoring) as client:
        assert await client.line() == "peer 0 answers on vector 0"
        client.interrupt()
        async with ivshmem_server.connect(path) as peer:
            peer.ring(0)
            with trio.fail_after(SECONDS):
                assert await peer.wait() == 1


async def test_reader_that_goes_away_ends_it_quietly(path: Path) -> None:
    async with serving(path), running("hexdump", "0", "0", "-S", path) as client:
        await client.stdout.aclose()
        assert await client.wait() == 141
        assert await client.stderr.receive_some() == b""


@pytest.mark.parametrize(
    "arguments",
    [["watch"], ["watch", "--json"], ["pong"], ["wait", 0], ["ping", 0, "--timeout", SECONDS], []],
    ids=["watch", "watch --json", "pong", "wait", "ping", "prompt"],
)
async def test_reader_that_goes_away_ends_what_would_wait_for_ever(
    path: Path, arguments: list[object]
) -> None:
    async with serving(path), ivshmem_server.connect(path) as peer:
        changes = peer.changes()
        async with running(*arguments, "-S", path) as client:
            await next_joined(changes)
            await client.stdout.aclose()
            assert isinstance(await following(changes), ivshmem_server.PeerLeft)
            assert await client.wait() == 141
            assert await client.stderr.receive_some() == b""


async def test_nobody_who_reads_does_not_keep_a_ring_from_being_rung(path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nowhere:
        async with (
            serving(path),
            ivshmem_server.connect(path) as peer,
            running("ring", peer.id, 0, "-S", path, stdout=nowhere) as client,
        ):
            assert await client.wait() == 0
            assert await rung(peer) == [0]


async def test_full_disk_is_one_line(path: Path) -> None:
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123
        async with serving(path), running("dump", "-S", path, stdout=full) as client:
            assert await client.wait() == 1
            assert await client.stderr.receive_some() == (
                b"ivshmem-client: cannot write to standard output: No space left on device\n"
            )


async def test_standard_streams_may_be_closed(path: Path) -> None:
    async with serving(path):
        async with running("write", "0", "--text", "hello", "-S", path, launcher=CLOSED) as client:
            assert await client.wait() == 0
        async with running("dump", "-S", path, launcher=CLOSED) as client:
            assert await client.wait() == 0
        assert await output("read", "0", "5", "-S", path) == b"hello".hex() + "\n"


async def test_version_is_that_of_the_distribution() -> None:
    assert await output("--version") == f"ivshmem-client (qemu-companion) {__version__}\n"


async def test_help_lists_every_command() -> None:
    listed = re.findall(r"^    (\w+) ", await output("--help"), re.MULTILINE)
    assert {"dump", "ring", "wait", "watch", "ping", "pong", "read", "write", "fill", "hexdump"} <= set(
        listed
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such"], "invalid choice: 'no-such'"),
        (["ring", "1"], "required: VECTOR"),
        (["ring", "one", "0"], "'one' is not a number; write it as 4096 or 0x1000"),
        (["wait", "0", "--timeout", "soon"], "'soon' is not a number of seconds"),
        (["wait", "0", "--count", "0"], "'0' must be at least 1"),
        (["dump", "--vectors", "2049"], "'2049' is not a number from 1 to 2048"),
        (["dump", "--memory", "x"], "--memory: there is no peer to ring; use it with read, write, "),
        (["--memory", "x"], "--memory: there is no peer to ring"),
    ],
)
async def test_usage_error_is_one_line_with_code_2(arguments: list[str], said: str) -> None:
    line = await error(*arguments, code=2)
    assert said in line
    assert "--help" in line


def test_start_does_not_load_what_few_commands_need() -> None:
    program = "import sys, ivshmem_server.program.client; print({'readline', 'elftools'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("files", [7, 8, 9, 10])  # with fewer, Python itself fails
async def test_limit_of_open_files_that_is_too_low_is_named(path: Path, files: int) -> None:
    few = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    async with serving(path), running("dump", "-S", path, launcher=few) as client:
        done = await client.end()
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "raise the limit" in done.err
    assert "with -S" not in done.err
    assert "give another -S" not in done.err
