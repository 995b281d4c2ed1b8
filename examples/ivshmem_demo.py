"""`make demo`: two real guests and this process share memory and ring each other."""

from __future__ import annotations

import shlex
import signal
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import ivshmem_server
from ivshmem_server import PeerLeft
from tests.rig.debian.apt import SetupError
from tests.rig.guest import guest as rig
from tests.rig.guest import image
from tests.rig.programs.server import start_server
from tests.rig.qemu.ivshmem import doorbell_arguments
from tests.rig.qemu.lines import QemuGoneError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ivshmem_server import Change, Peer

VECTORS = 2
#: Beyond it something hangs: a step takes milliseconds.
STEP_SECONDS = 30
#: Where those who repeat it by hand let the server listen: its default.
SOCKET = Path("/tmp/ivshmem_socket")

_begin = time.monotonic()


class DemoError(Exception):
    """Something did not happen as it should."""


def tell(who: str, what: str) -> None:
    """Print what has happened, with the seconds since the start."""
    print(f"{time.monotonic() - _begin:7.3f}  {who:<8} {what}", flush=True)


def expect(actual: str, wanted: str) -> str:
    """Return `actual`. Raises DemoError where it is not what was wanted."""
    if actual != wanted:
        raise DemoError(f"expected {wanted!r}, but got {actual!r}")
    return actual


@dataclass(frozen=True)
class Member:
    """A guest, and its id as a peer."""

    guest: rig.Guest
    id: int

    @property
    def name(self) -> str:
        """What the guest is called in the output."""
        return self.guest.name

    async def listen(self, actions: str) -> rig.Command:
        """Start `actions` of the guest's ivshmem program; return once its interrupts are enabled."""
        command = await self.guest.start(f"ivshmem-guest vfio {actions}")
        await command.line()
        return command

    async def run(self, actions: str) -> str:
        """Do `actions` of the guest's ivshmem program; return what it prints."""
        return await (await self.listen(actions)).finish()


@asynccontextmanager
async def join(name: str, socket: Path) -> AsyncIterator[Member]:
    """Boot a guest that joins the server at `socket`; end it with the block."""
    began = time.monotonic()
    tell(name, f"QEMU starts, with {shlex.join(doorbell_arguments(socket, vectors=VECTORS))}")
    async with rig.boot(*doorbell_arguments(socket, vectors=VECTORS), name=name) as guest:
        release = await guest.sh("uname -r")
        tell(name, f"Linux {release} is up, {time.monotonic() - began:.1f} s after QEMU's start")
        address = await guest.sh("ivshmem-bind")
        state = await guest.sh("ivshmem-guest vfio")
        tell(name, f"device {address} is bound to vfio-pci: {state}")
        yield Member(guest, int(state.split()[0].removeprefix("id=")))


async def show_memory(host: Peer, first: Member, second: Member) -> None:
    """Memory written by one guest is read by the other and by the host."""
    text = f"hello-from-{first.id}"
    await first.run(f"write 0x100 {text}")
    tell(first.name, f'wrote "{text}" into the shared memory at 0x100')
    tell(second.name, f'reads "{expect(await second.run("read 0x100"), text)}" there')
    seen = bytes(host.memory[0x100 : 0x100 + len(text)]).decode(errors="replace")
    tell("host", f'reads "{expect(seen, text)}" there')


async def show_host_to_guest(host: Peer, member: Member) -> None:
    """The host's ring is an MSI-X interrupt in the guest, on every vector."""
    command = await member.listen(f"{' '.join(f'wait {vector}' for vector in range(VECTORS))} interrupts")
    for vector in range(VECTORS):
        began = time.monotonic()
        host.ring(member.id, vector)
        tell("host", f"rang peer {member.id} on vector {vector}")
        line = expect(await command.line(), f"interrupt vector={vector} count=1")
        tell(member.name, f"{line} (printed {(time.monotonic() - began) * 1000:.1f} ms after the ring)")
    for line in (await command.finish()).splitlines():
        tell(member.name, f"/proc/interrupts: {' '.join(line.split())}")


async def show_guest_to_host(host: Peer, member: Member, vector: int) -> None:
    """The guest's doorbell wakes the host."""
    line = await member.run(f"ring {host.id} {vector}")
    tell(member.name, line)
    count = await host.wait(vector)
    tell("host", f"woken on vector {vector}, {expect(str(count), '1')} ring")


async def show_guest_to_guest(sender: Member, receiver: Member, vector: int) -> None:
    """One guest's doorbell is an interrupt in the other."""
    command = await receiver.listen(f"wait {vector}")
    tell(sender.name, await sender.run(f"ring {receiver.id} {vector}"))
    tell(receiver.name, expect(await command.finish(), f"interrupt vector={vector} count=1"))


async def show(host: Peer, first: Member, second: Member) -> None:
    """Do every step; each is limited in time."""
    for step in (
        partial(show_memory, host, first, second),
        partial(show_host_to_guest, host, first),
        partial(show_host_to_guest, host, second),
        partial(show_guest_to_host, host, first, 0),
        partial(show_guest_to_host, host, second, 1),
        partial(show_guest_to_guest, first, second, 0),
        partial(show_guest_to_guest, second, first, 1),
    ):
        with trio.fail_after(STEP_SECONDS):
            await step()


async def show_departure(changes: AsyncIterator[Change], first: Member, second: Member) -> None:
    """The host is told that both guests, which have been killed, have left."""
    staying = {first.id, second.id}
    with trio.fail_after(STEP_SECONDS):
        while staying:
            match await anext(changes):
                case PeerLeft(peer):
                    tell("host", f"peer {peer} has left")
                    staying.discard(peer)


async def demonstrate() -> None:
    """Start the server and its peers, show what they can do, end them."""
    tell("demo", f"guests run Linux {image.load().release} with -accel {rig.accelerator()}")
    with tempfile.TemporaryDirectory(prefix="ivshmem-demo-") as directory:
        options = ("-l", "1M", "-n", str(VECTORS))
        async with start_server(Path(directory), *options, memfd=True) as server:
            tell("server", f"ivshmem-server -F -S {server.socket} --memfd {' '.join(options)}: listens")
            async with ivshmem_server.connect(server.socket, vectors=VECTORS) as host:
                tell("host", f"joined as peer {host.id}; the memory has {len(host.memory)} bytes")
                changes = host.changes()
                async with join("guest A", server.socket) as first, join("guest B", server.socket) as second:
                    await show(host, first, second)
                await show_departure(changes, first, second)
    tell("demo", "everything happened as it should; guests and server have ended")


async def attempt() -> str | None:
    """Run the demo; return in one line why it failed, or None."""
    try:
        await demonstrate()
    except trio.TooSlowError:
        failure = "nothing happened for long where something should have"
    except QemuGoneError:
        failure = "QEMU has ended; what it printed is above"
    except (DemoError, SetupError, rig.BrokenKvmError, rig.CommandError, OSError) as error:
        failure = " ".join(str(error).split())
    else:
        return None
    # Ctrl-C reaches QEMU too, and its end may be noticed before our own signal, which cancels this.
    await trio.sleep(0.2)
    return failure


async def until_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    """Cancel everything when a signal asks for the end."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def run() -> str | None:
    """Run the demo until it ends or is interrupted; return in one line why it did not succeed, or None."""
    failure: str | None = "interrupted"
    async with trio.open_nursery() as nursery:
        await nursery.start(until_signal, nursery.cancel_scope)
        failure = await attempt()
        nursery.cancel_scope.cancel()
    return failure


def print_commands() -> None:
    """Print how to do the same by hand."""
    machine = [*rig.machine_arguments(), *doorbell_arguments(SOCKET, vectors=VECTORS)]
    words = (shlex.quote(word) for word in machine)
    command = " ".join(f"\\\n      {word}" if word.startswith("-") else word for word in words)
    print(f"""
By hand: the server; in two more terminals a guest each, whose console is the terminal (Ctrl-C ends it):

    {Path(sys.executable).with_name("ivshmem-server")} -F -S {SOCKET} --memfd -l 1M -n {VECTORS}

    {command}

and in the guests, of which the first is peer 0 and the second peer 1:

    ivshmem-guest sysfs write 0x100 hello       in one
    ivshmem-guest sysfs read 0x100              in the other
    ivshmem-bind && ivshmem-guest vfio wait 0   in the first
    ivshmem-guest sysfs ring 0 0                in the second""")


def main() -> int:
    """Run the demo; return the exit code."""
    failure = trio.run(run)
    if failure is not None:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    print_commands()
    return 0


if __name__ == "__main__":
    sys.exit(main())
