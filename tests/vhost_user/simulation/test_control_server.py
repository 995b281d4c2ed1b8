"""The control socket: requests and answers as lines, events between them, clients that come and go."""

from __future__ import annotations

import contextlib
import json
import stat
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from protocol.io import connect as connect_socket
from protocol.io import listen
from tests.vhost_user.simulation.lamp import House, Lamp
from vhost_user import CallError
from vhost_user.simulation.control_client import ControlClient, ControlError, connect
from vhost_user.simulation.control_server import MAX_LINE, serve_control
from vhost_user.simulation.simulation import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from protocol.io import FdStream

SECONDS = 60


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vu-") as directory:
        yield Path(directory, "control")


@asynccontextmanager
async def controlled(path: Path) -> AsyncIterator[House]:
    """Serve a house at `path`."""
    house = House()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, house, path)
            yield house
            nursery.cancel_scope.cancel()
    assert not path.exists()


async def exchange(stream: FdStream, *lines: bytes) -> list[dict[str, Any]]:
    """Send lines; return that many answers."""
    await stream.send(b"\n".join(lines) + b"\n")
    return await answers(stream, len(lines))


async def answers(stream: FdStream, count: int) -> list[dict[str, Any]]:
    data = b""
    while data.count(b"\n") < count:
        data += (await stream.receive(1 << 20, 0))[0]
    return [json.loads(line) for line in data.splitlines()]


async def test_calls_from_a_client(path: Path) -> None:
    async with controlled(path) as house, connect(path) as client:
        assert await client.call("switch", on="hall", lit=True) is None
        assert lamp(house).is_on
        assert await client.call("state", on="hall") == {"on": True}
        assert await client.call("echo", on="attic/left", raw=b"\x01\xff", colour="warm white") == [
            *(None, 0.0, "", "01ff", [], "fast", "warm white", 0.0)
        ]
        with pytest.raises(CallError, match=r"^0 is no percentage from 1 to 100$"):
            await client.call("switch", on="hall", lit=False, brightness=0)
        with pytest.raises(CallError, match="no part 'cellar'"):
            await client.call("state", on="cellar")


def lamp(house: House) -> Lamp:
    found = house.parts["hall"]
    assert isinstance(found, Lamp)
    return found


async def test_lines(path: Path) -> None:
    async with controlled(path):
        with await connect_socket(str(path)) as stream:
            assert await exchange(
                stream,
                b'{"execute": "state", "on": "hall", "id": [7, null]}',
                b'  {"execute": "flood", "arguments": {"count": 0}, "on": ""}',
                b'{"execute": "melt", "id": null}',
                b'{"execute": "flood", "arguments": null, "on": null}',
            ) == [
                {"return": {"on": False}, "id": [7, None]},
                {"return": None},
                {"error": "there is no call 'melt'; there are flood", "id": None},
                {"error": "flood: missing a required argument: 'count'; it takes (count: int)"},
            ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"hello", "no line of JSON: Expecting value"),
        (b"\xff{}", "no line of JSON: "),
        (b"[]", "a request is {"),
        (b"{}", "a request is {"),
        (b'{"execute": 5}', "a request is {"),
        (b'{"execute": "state", "part": "hall"}', "a request has no part; it has arguments, execute, id, on"),
        (b'{"execute": "state", "on": 5}', "'on' has to be the name of a part"),
        (b'{"execute": "state", "arguments": [5]}', "'arguments' has to be an object"),
        (b"[" * 100_000, "no line of JSON"),
    ],
)
async def test_lines_that_are_no_requests(path: Path, line: bytes, complaint: str) -> None:
    async with controlled(path):
        with await connect_socket(str(path)) as stream:
            refused, answered = await exchange(stream, line, b'{"execute": "state", "on": "hall"}')
            assert refused["error"].startswith(complaint)
            assert answered == {"return": {"on": False}}


async def test_a_line_without_end(path: Path) -> None:
    async with controlled(path), connect(path) as other:
        with await connect_socket(str(path)) as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, stream)
                (answer,) = await answers(stream, 1)
                assert answer == {"error": f"a line is longer than {MAX_LINE} bytes"}
                nursery.cancel_scope.cancel()
        assert await other.call("state", on="hall") == {"on": False}


async def test_a_call_that_is_too_long_for_a_line_is_refused(path: Path) -> None:
    async with controlled(path), connect(path) as client:
        with pytest.raises(CallError, match=f"echo: the request has more than {MAX_LINE} bytes"):
            await client.call("echo", on="attic/left", raw=bytes(MAX_LINE))
        assert await client.call("state", on="hall") == {"on": False}


async def flood(stream: FdStream) -> None:
    with contextlib.suppress(OSError):
        while True:
            await stream.send(b"x" * 65536)


async def test_a_defect_ends_a_call_and_no_more(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with controlled(path), connect(path) as client:
        with pytest.raises(CallError, match="the mains are off"):
            await client.call("fail", on="hall", error="os")
        assert not caplog.records
        with pytest.raises(CallError, match="the call failed: RuntimeError: a defect"):
            await client.call("fail", on="hall", error="defect")
        assert "a defect" in (caplog.records[0].exc_text or "")
        assert await client.call("state", on="hall") == {"on": False}


async def test_help_lists_all_calls(path: Path) -> None:
    async with controlled(path), connect(path) as client:
        calls = await client.call("help")
        assert [(each["call"], each["on"]) for each in calls if each["call"] in {"flood", "state"}] == [
            *(("flood", ""), ("state", "hall"), ("state", "attic/left"))
        ]
        (switch,) = (each for each in calls if each["call"] == "switch" and each["on"] == "hall")
        assert switch["arguments"] == {"lit": "bool", "brightness": "int = 100"}
        assert switch["help"] == "Switch it on or off."


async def test_events_between_the_answers(path: Path) -> None:
    async with controlled(path) as house, connect(path) as client, connect(path) as deaf:
        await client.subscribe()
        await client.call("switch", on="hall", lit=True)
        house.flood(2)
        assert await client.next_event() == Event("light", {"lit": True, "brightness": 100}, "hall")
        assert await client.next_event() == Event("drop", {"number": 0})
        assert await client.next_event() == Event("drop", {"number": 1})
        assert await deaf.call("state", on="hall") == {"on": True}


async def test_a_client_that_does_not_fetch_its_events_is_left(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with controlled(path) as house, connect(path) as slow, connect(path) as client:
        await slow.subscribe()
        while not caplog.records:
            house.flood(1000)
            await client.call("state", on="hall")
        assert "too slow" in caplog.records[0].getMessage()
        with pytest.raises(ControlError, match="has closed"):
            await all_events(slow)
        assert await client.call("state", on="hall") == {"on": False}


async def test_an_event_that_json_cannot_tell_is_left_out(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with controlled(path) as house, connect(path) as client:
        await client.subscribe()
        for _ in range(10):
            house.emit("odd", what=object())
        house.flood(1)
        assert await client.next_event() == Event("drop", {"number": 0})
        assert await client.call("state", on="hall") == {"on": False}
    (record,) = caplog.records
    assert "telling of the event 'odd' failed: it is not told" in record.getMessage()


async def all_events(client: ControlClient) -> None:
    while True:
        await client.next_event()


async def test_a_call_is_cancelled_once_its_client_has_gone(path: Path) -> None:
    async with controlled(path) as house:
        with await connect_socket(str(path)) as stream:
            await stream.send(b'{"execute": "burn_out", "on": "hall"}\n')
            while not lamp(house).waiting:  # noqa: ASYNC110 -- a lamp has no events for what it waits for
                await trio.sleep(0.01)
            stream.send_eof()
            assert not lamp(house).cancelled
        while not lamp(house).cancelled:  # noqa: ASYNC110 -- as above
            await trio.sleep(0.01)


async def test_a_client_that_has_sent_all_gets_its_answers(path: Path) -> None:
    async with controlled(path):
        with await connect_socket(str(path)) as stream:
            await stream.send(b'{"execute": "state", "on": "hall"}')
            stream.send_eof()
            data = b""
            while more := (await stream.receive(4096, 0))[0]:
                data += more
            assert json.loads(data) == {"return": {"on": False}}


async def test_only_the_owner_may_connect(path: Path) -> None:
    async with controlled(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_client_is_told_when_the_program_ends(path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with controlled(path):
            client = await stack.enter_async_context(connect(path))
            await client.call("state", on="hall")
        with pytest.raises(ControlError, match="has closed the control socket"):
            await client.call("state", on="hall")


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n", b"\xff\xfe\n", b"5\n", b'{"QMP": {}}\n'])
async def test_a_program_that_is_no_control_socket_is_found_out(path: Path, said: bytes) -> None:
    with listen(str(path)) as listener, trio.fail_after(SECONDS):
        async with connect(path) as client:
            with await listener.accept() as stream:
                await stream.send(said)
                with pytest.raises(ControlError, match="this is not an answer of a control socket: "):
                    await client.call("state")
