"""evtest in a guest: what it says of an input device, and the events that it prints."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from protocol.virtio.input import Event
from protocol.virtio.input_codes import EventType, Syn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.rig.guest.guest import Shell

_EVENT = re.compile(r"^Event: time [\d.]+, type (\d+) \(\w+\), code (\d+) \(\w+\), value (-?\d+)$")
_SYN = re.compile(r"^Event: time [\d.]+, -------------- SYN_REPORT ------------$")
#: How the line of each ends: evtest writes it in pieces, and so somebody may find its beginning alone.
_EVENT_ENDS = r"\(value -\?[0-9]\+\|------------\)"
#: If fewer events come, what did come is shown after a while.
_RUN = """
rm -f /tmp/evtest
evtest {device} >/tmp/evtest 2>&1 & evtest=$!
until grep -qs '^Testing' /tmp/evtest; do usleep 10000; done
echo started
{then}
for i in $(seq 1000); do
    [ $(grep -c '^Event:.*{of}.*{ends}$' /tmp/evtest) -ge {count} ] && break
    usleep 10000
done
kill $evtest
wait $evtest
cat /tmp/evtest
"""
SECONDS = 60
SYN_REPORT = Event(EventType.SYN, Syn.REPORT, 0)


async def find(guest: Shell, name: str) -> str:
    """Return the path of the input device whose name this is, once there is one."""
    return await guest.sh(
        "while true; do for each in /sys/class/input/event*; do\n"
        f'[ "$(cat $each/device/name 2>/dev/null)" = "{name}" ] && [ -e /dev/input/${{each##*/}} ]'
        " && echo /dev/input/${each##*/} && exit\ndone; usleep 10000; done"
    )


@dataclass(frozen=True)
class Shown:
    """What evtest printed: of the device, and the events."""

    description: str
    lines: list[str]

    @property
    def events(self) -> list[Event]:
        """The events that the lines tell of."""
        return [_parse(line) for line in self.lines]


@asynccontextmanager
async def running(
    guest: Shell, device: str, count: int, *, of: str = "", then: str = ""
) -> AsyncIterator[list[Shown]]:
    """Run evtest until `count` events have come; at the end of the block, what it printed is in the list.

    Counted are the lines with `of` in them. `then` are shell commands that are to be done once it runs.
    """
    shown: list[Shown] = []
    command = await guest.start(_RUN.format(device=device, count=count, of=of, ends=_EVENT_ENDS, then=then))
    assert await command.line() == "started"
    yield shown
    with trio.fail_after(SECONDS):
        text = await command.finish()
    description, _, rest = text.partition("Testing ... (interrupt to exit)\n")
    shown.append(Shown(description, [line for line in rest.splitlines() if line.startswith("Event:")]))


def _parse(line: str) -> Event:
    if _SYN.match(line):
        return SYN_REPORT
    match = _EVENT.match(line)
    assert match is not None, f"what does evtest mean by {line!r}?"
    return Event(*(int(number) for number in match.groups()))
