"""The tables of docs/protocol.md: `make tables` writes them again from the code.

The last column is written by hand and stays; a new row's is empty until somebody fills it in.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from protocol.vhost_user import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    Ack,
    BackendMessage,
    FrontendMessage,
    GpuSetSocket,
    ProtocolFeature,
    SetMemTable,
)
from protocol.virtio.features import Feature
from tests.docs.documents import PROJECT
from vhost_user.backend import HANDLERS
from vhost_user.device import VirtioDevice

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCUMENT = PROJECT / "docs/protocol.md"
ON_REQUEST = Feature.IN_ORDER | Feature.ORDER_PLATFORM | Feature.NOTIFICATION_DATA
"""What the queues can do and a device offers only if it wants to."""

Row: TypeAlias = tuple[str, ...]


class Plain(VirtioDevice):
    """Has nothing but what every device has."""


class Complete(VirtioDevice):
    """Overrides every method by which a device offers something."""

    config = b"\0"
    shared_memory = {0: 4096}  # noqa: RUF012 -- a constant
    send_rarp = set_mtu = create_crypto_session = close_crypto_session = shared_object = lambda *_: None
    save_state = lambda _: b""  # noqa: E731 -- a method


EVERY = Plain().offered_protocol_features
SOME = Complete().offered_protocol_features


def verdict(needed: ProtocolFeature) -> str:
    """Return who offers these protocol features: yes, every device; device, some; no, none."""
    if not needed.without(EVERY):
        return "yes"
    return "no" if needed.without(SOME) else "device"


def frontend_messages() -> Iterable[Row]:
    """Return number, name, payload size, descriptors, needs, answer and verdict of each."""
    for number, kind in sorted(FRONTEND_REQUESTS.items()):
        assert kind in HANDLERS
        here = "device" if kind is GpuSetSocket else verdict(kind.requirement.protocol)
        yield str(number), f"`{kind.number.name}`", size(kind), fds(kind), needs(kind), answer(kind), here


def backend_messages() -> Iterable[Row]:
    """Return number, name, payload size, descriptors, needs and answer of each."""
    for number, kind in sorted(BACKEND_REQUESTS.items()):
        yield str(number), f"`{kind.number.name}`", size(kind), fds(kind), needs(kind), answer(kind)


VARYING_SIZES = {"memory regions": "8+32n", "configuration space": "12+n", "crypto session": "any"}


def size(kind: type[FrontendMessage | BackendMessage]) -> str:
    """Return the sizes that the payload may have, in bytes."""
    return VARYING_SIZES.get(kind.payload.name) or ", ".join(map(str, sorted(kind.payload.sizes)))


def fds(kind: type[FrontendMessage | BackendMessage]) -> str:
    """Return how many descriptors may come with it."""
    return "n" if kind is SetMemTable else ", ".join(map(str, sorted(kind.fd_counts)))


def needs(kind: type[FrontendMessage | BackendMessage]) -> str:
    """Return what has to be negotiated before it is sent."""
    bits = [
        name
        for bits in (kind.requirement.feature, kind.requirement.protocol)
        if bits
        for name in str(bits).split("|")
    ]
    return ", ".join(bits) + (" offered" if kind.requirement.offered else "")


def answer(kind: type[FrontendMessage | BackendMessage]) -> str:
    """Return how it is answered: "ack" only if it asks for that."""
    name = kind.reply.__name__
    if kind.reply is Ack:
        name = "result" if kind.always_replied else "ack"
    return f"{name} ({kind.postcopy_reply.__name__})" if kind.postcopy_reply else name


def features() -> Iterable[Row]:
    """Return bit, name and verdict of each feature that is no device type's own."""
    offered = Plain().offered_features
    for name, bit in Feature.__members__.items():
        if bit:
            here = "yes" if bit in offered else "device" if bit in ON_REQUEST else "no"
            yield str(bit.bit_length() - 1), f"`{name}`", here


def protocol_features() -> Iterable[Row]:
    """Return bit, name and verdict of each protocol feature."""
    for name, bit in ProtocolFeature.__members__.items():
        if bit:
            yield str(bit.bit_length() - 1), f"`{name}`", verdict(bit)


TABLES = {
    "| # | message | size | fds | needs | answer | here | what is done |": frontend_messages,
    "| # | message | size | fds | needs | answer | when it is sent |": backend_messages,
    "| bit | feature | here | what for |": features,
    "| bit | protocol feature | here | what for |": protocol_features,
}


def rewritten(text: str) -> str:
    """Return the document with its tables as the code has them."""
    for heading, rows in TABLES.items():
        old = re.search(rf"^{re.escape(heading)}\n(?:\|.*\n)*", text, re.MULTILINE)
        assert old, f"the document has no table {heading}"
        told = {row.split("|")[2].strip(): row.split("|")[-2].strip() for row in old[0].splitlines()[2:]}
        lines = [heading, "|---" * (heading.count("|") - 1) + "|"]
        lines += [f"| {' | '.join(row)} | {told.get(row[1], '')} |" for row in rows()]
        text = text.replace(old[0], "".join(f"{line}\n" for line in lines))
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()))
