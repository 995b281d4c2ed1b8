"""Control: the commands of the control queue (virtio 1.3, section 5.1.6.5)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from protocol.errors import RemoteProtocolError
from protocol.program.warnings import OnceLogger
from protocol.virtio.net import (
    ANNOUNCE_ACK,
    CONTROL_HEADER,
    GUEST_OFFLOADS,
    GUEST_OFFLOADS_SET,
    MAC_SIZE,
    MQ_VQ_PAIRS_SET,
    VLAN_IDS,
    ControlClass,
    ControlStatus,
    MacCommand,
    NetFeature,
    RxCommand,
    VlanCommand,
    mac_tables,
)
from protocol.words import plural
from vhost_user.devices.net.ports.frames import Filter

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.ring.chain import Chain

MAX_COMMAND_BYTES = 1 << 16
"""Longer commands are refused: tables of more than 10 000 addresses."""

_log = logging.getLogger("vhost_user.net")


class BadCommandError(Exception):
    """A command that is refused; says why in one line."""


class NetControls(Protocol):
    """What follows from some commands: the device."""

    def use_pairs(self, pairs: int) -> None:
        """Use so many pairs of queues."""

    def set_offloads(self, offloads: NetFeature) -> None:
        """Leave these of GUEST_OFFLOADS to the guest."""

    def announced(self) -> None:
        """Note that the guest has announced itself."""

    def mac_changed(self) -> None:
        """Note another `Filter.mac`."""


class Control:
    """Obeys commands, where `features` are what the driver turned on."""

    def __init__(self, device: NetControls, mac: bytes, max_pairs: int) -> None:
        """`mac` is the address that the guest has as long as it does not choose another one."""
        self.features = NetFeature.NONE
        self.filter = Filter(mac)
        self._device = device
        self._max_pairs = max_pairs
        self._once = OnceLogger(_log, 1)

    def serve(self, chain: Chain) -> None:
        """Obey the command in `chain`, answer it, and complete it."""
        if not chain.writable.remaining:
            self._tell("it has no byte for the answer")
            chain.complete(0)
            return
        status = ControlStatus.OK
        try:
            self.obey(chain.readable.read(min(chain.readable.remaining, MAX_COMMAND_BYTES + 1)))
        except BadCommandError as error:
            self._tell(str(error))
            status = ControlStatus.ERR
        chain.writable.write(bytes([status]))
        chain.complete()

    def obey(self, command: bytes) -> None:
        """Do what a command says, as it is without the byte for its answer. Raises BadCommandError."""
        if len(command) < CONTROL_HEADER.size or len(command) > MAX_COMMAND_BYTES:
            raise BadCommandError(f"it has {plural(len(command), 'byte')}")
        kind, number = CONTROL_HEADER.unpack_from(command)
        if (kind, number) not in _COMMANDS:
            raise BadCommandError(f"there is no command {number} of class {kind}")
        needed, do = _COMMANDS[kind, number]
        if needed not in self.features:
            raise BadCommandError(f"command {number} of class {kind} needs {needed}, which is off")
        do(self, number, command[CONTROL_HEADER.size :])

    def _tell(self, what: str) -> None:
        """Log a command that is refused, the first time: a guest can send many."""
        self._once.warning(f"a control command is refused: {what}")

    def _set_mode(self, number: int, data: bytes) -> None:
        (on,) = _sized(data, 1)
        if on > 1:
            raise BadCommandError(f"a mode that is {on}, neither on nor off")
        mode = RxCommand(number)
        (self.filter.modes.add if on else self.filter.modes.discard)(mode)

    def _set_tables(self, _: int, data: bytes) -> None:
        try:
            unicast, multicast = mac_tables(data)
        except RemoteProtocolError as error:
            raise BadCommandError(str(error)) from None
        self.filter.unicast, self.filter.multicast = frozenset(unicast), frozenset(multicast)

    def _set_mac(self, _: int, data: bytes) -> None:
        self.filter.mac = _sized(data, MAC_SIZE)
        self._device.mac_changed()

    def _add_vlan(self, _: int, data: bytes) -> None:
        self._vlans().add(_vlan(data))

    def _remove_vlan(self, _: int, data: bytes) -> None:
        self._vlans().discard(_vlan(data))

    def _vlans(self) -> set[int]:
        if self.filter.vlans is None:
            self.filter.vlans = set()
        return self.filter.vlans

    def _acknowledge(self, _: int, data: bytes) -> None:
        _sized(data, 0)
        self._device.announced()

    def _set_pairs(self, _: int, data: bytes) -> None:
        pairs = int.from_bytes(_sized(data, 2), "little")
        if not 1 <= pairs <= self._max_pairs:
            raise BadCommandError(f"{plural(pairs, 'pair')} of queues; there are {self._max_pairs}")
        self._device.use_pairs(pairs)

    def _set_offloads(self, _: int, data: bytes) -> None:
        offloads = NetFeature(int.from_bytes(_sized(data, 8), "little"))
        if wrong := offloads.without(self.features & GUEST_OFFLOADS):
            raise BadCommandError(f"{wrong} cannot be left to the guest")
        self._device.set_offloads(offloads)


_COMMANDS: dict[tuple[int, int], tuple[NetFeature, Callable[[Control, int, bytes], None]]] = {
    (ControlClass.RX, RxCommand.PROMISC): (NetFeature.CTRL_RX, Control._set_mode),
    (ControlClass.RX, RxCommand.ALLMULTI): (NetFeature.CTRL_RX, Control._set_mode),
    (ControlClass.RX, RxCommand.ALLUNI): (NetFeature.CTRL_RX_EXTRA, Control._set_mode),
    (ControlClass.RX, RxCommand.NOMULTI): (NetFeature.CTRL_RX_EXTRA, Control._set_mode),
    (ControlClass.RX, RxCommand.NOUNI): (NetFeature.CTRL_RX_EXTRA, Control._set_mode),
    (ControlClass.RX, RxCommand.NOBCAST): (NetFeature.CTRL_RX_EXTRA, Control._set_mode),
    (ControlClass.MAC, MacCommand.TABLE_SET): (NetFeature.CTRL_RX, Control._set_tables),
    (ControlClass.MAC, MacCommand.ADDR_SET): (NetFeature.CTRL_MAC_ADDR, Control._set_mac),
    (ControlClass.VLAN, VlanCommand.ADD): (NetFeature.CTRL_VLAN, Control._add_vlan),
    (ControlClass.VLAN, VlanCommand.DEL): (NetFeature.CTRL_VLAN, Control._remove_vlan),
    (ControlClass.ANNOUNCE, ANNOUNCE_ACK): (NetFeature.GUEST_ANNOUNCE, Control._acknowledge),
    (ControlClass.MQ, MQ_VQ_PAIRS_SET): (NetFeature.MQ, Control._set_pairs),
    (ControlClass.GUEST_OFFLOADS, GUEST_OFFLOADS_SET): (
        NetFeature.CTRL_GUEST_OFFLOADS,
        Control._set_offloads,
    ),
}
"""The commands by class and number: the feature that one needs, and what does it."""


def _sized(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise BadCommandError(f"{plural(len(data), 'byte')} of data, which should be {size}")
    return data


def _vlan(data: bytes) -> int:
    vlan = int.from_bytes(_sized(data, 2), "little")
    if vlan >= VLAN_IDS:
        raise BadCommandError(f"there is no VLAN {vlan}")
    return vlan
