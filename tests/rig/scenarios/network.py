"""A guest's network card, whatever boots it: an address, pings, its link, large segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.rig.guest.guest import Shell
    from tests.rig.scenarios.iperf import Host
    from vhost_user.simulation.control_client import ControlClient

HOST, GUEST = "192.0.2.1", "192.0.2.2"
MAC = "52:54:00:aa:bb:cc"
MTU = 1500

_SYSFS = "/sys/class/net/eth0"
_NO_IPV6 = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
_NEIGHBOURS = "/proc/sys/net/ipv4/neigh/eth0"
#: How many seconds a ping may take, where it is to be answered.
_PATIENCE = 60
_MEBIBYTES = 16


async def bring_up(guest: Shell, address: str = GUEST) -> None:
    """Give eth0 an address, and have it ask for others' as long as anybody waits, not for three seconds."""
    await guest.sh(
        f"for each in {_NEIGHBOURS}/*cast_solicit; do echo {_PATIENCE} >$each; done;"
        f" ip address add {address}/24 dev eth0 && ip link set eth0 up"
    )


async def ping(guest: Shell, address: str, count: int = 1, *, size: int = 56) -> bool:
    """Ping so many times, each when the one before was answered. Raises CommandError if one is not.

    Of several at a time, busybox's ping awaits the last answers for a second only.
    """
    one = f"ping -q -c 1 -W {_PATIENCE} -s {size} {address}"
    output = await guest.sh(f"for each in $(seq {count}); do {one} || exit; done")
    return output.count("1 packets received") == count


async def loses_pings(guest: Shell, address: str) -> bool:
    """Tell whether a ping gets no answer for a second."""
    return "100% packet loss" in await guest.sh(f"ping -q -c 1 -W 1 {address} || true")


async def know_each_other(guests: Sequence[Shell], addresses: Sequence[str]) -> None:
    """Give guests addresses and have each know the others, so that they send nothing by themselves."""
    macs = [await guest.sh(f"cat {_SYSFS}/address") for guest in guests]
    for guest, own in zip(guests, addresses, strict=True):
        await guest.sh(f"[ ! -e {_NO_IPV6} ] || echo 1 >{_NO_IPV6}")
        await bring_up(guest, own)
        for mac, address in zip(macs, addresses, strict=True):
            if address != own:
                await guest.sh(f"arp -i eth0 -s {address} {mac}")


async def ping_replies(guest: Shell) -> int:
    """Return how many answers the guest's kernel has got, also those that were too late for ping."""
    names, values = (await guest.sh("grep ^Icmp: /proc/net/snmp")).splitlines()
    return int(dict(zip(names.split(), values.split(), strict=True))["InEchoReps"])


async def until_carrier(guest: Shell, value: int) -> None:
    """Wait until the guest sees its link so."""
    await guest.sh(f"until [ $(cat {_SYSFS}/carrier) = {value} ]; do usleep 20000; done")


@dataclass(frozen=True)
class Card:
    """A guest with the address GUEST on a network with HOST, and what can be done to its device."""

    guest: Shell
    control: ControlClient

    async def pings(self, size: int = 56) -> bool:
        """Ping the host."""
        return await ping(self.guest, HOST, size=size)

    async def is_cut_off(self) -> bool:
        """Tell whether the host does not answer."""
        return await loses_pings(self.guest, HOST)

    async def address(self) -> str:
        """Return the address that the driver has."""
        return await self.guest.sh(f"cat {_SYSFS}/address")

    async def until_carrier(self, value: int) -> None:
        """Wait until the guest sees its link so."""
        await until_carrier(self.guest, value)

    async def statistics(self) -> dict[str, int]:
        """Return the device's counts."""
        counts = await self.control.call("statistics")
        assert isinstance(counts, dict)
        return counts

    async def check_large_segments(self, host: Host) -> None:
        """TCP goes both ways, in frames much larger than those of a real network, and none is dropped."""
        for to_guest, way in ((False, "from_guest"), (True, "to_guest")):
            before = await self.statistics()
            done = await host.transfer(self.guest, HOST, f"-n {_MEBIBYTES}M", to_guest=to_guest)
            after = await self.statistics()
            assert done.bytes > 1e6
            frames, size = (after[f"{way}_{what}"] - before[f"{way}_{what}"] for what in ("frames", "bytes"))
            assert size / frames > 4 * MTU
            assert after["to_guest_dropped"] == after["from_guest_dropped"] == 0
