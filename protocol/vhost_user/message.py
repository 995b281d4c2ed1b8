"""The base classes of all vhost-user messages: requests and replies.

The class of a message states what the specification says about it: number, payload, file descriptors,
required features, reply. The sessions know no single message: they act on these statements.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from protocol.errors import LocalProtocolError
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.payload import EMPTY, VALUE, Payload

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from protocol.fds import OwnedFd
    from protocol.vhost_user.negotiation import Negotiation
    from protocol.vhost_user.numbers import BackendRequest, FrontendRequest

HEX: Final = {"base": 16}
"""Metadata of a dataclass field that is printed in hexadecimal: addresses, sizes of memory."""

_SHOWN_BYTES = 32


@dataclass(repr=False)
class Message:
    """A request or a reply. It owns `fds` until they are taken; `close()` closes those that are left."""

    payload: ClassVar[Payload] = EMPTY
    fd_counts: ClassVar[Collection[int]] = {0}
    """How many file descriptors messages of this class may have."""

    fds: tuple[OwnedFd, ...] = field(default=(), kw_only=True, compare=False)

    @property
    def label(self) -> str:
        """The name of the message, for logs."""
        raise NotImplementedError

    def allowed_fds(self) -> Collection[int]:
        """Return how many file descriptors may come with this very message."""
        return self.fd_counts

    def encode(self, xen: bool = False) -> bytes:
        """Return the payload. Raises LocalProtocolError where a value does not fit its field."""
        values = {each.name: getattr(self, each.name) for each in payload_fields(type(self))}
        try:
            data = self.payload.build(values, xen)
        except ValueError as error:
            raise LocalProtocolError(f"{self.label}: {error}") from None
        if not self.payload.fits(len(data), xen):
            raise LocalProtocolError(
                f"{self.label}: {len(data)} bytes of payload do not fit ({self.payload.name})"
            )
        return data

    @classmethod
    def decode(cls, data: bytes, xen: bool = False) -> Self:
        """Return the message with this payload. Raises ValueError, in one line, for any other payload."""
        if not cls.payload.fits(len(data), xen):
            raise ValueError(f"{len(data)} bytes of payload do not fit ({cls.payload.name})")
        values = cls.payload.parse(data, xen)
        return cls(**{each.name: values[each.name] for each in payload_fields(cls)})

    def negotiate(self, negotiation: Negotiation) -> None:
        """Record in `negotiation` what this message changes. Raises ValueError if it must not change it."""

    def take_fds(self) -> tuple[OwnedFd, ...]:
        """Return the descriptors, which are the caller's to close from now on."""
        fds, self.fds = self.fds, ()
        return fds

    def take_fd(self) -> OwnedFd | None:
        """Return the descriptor of a message with at most one; it is the caller's to close from now on."""
        fds = self.take_fds()
        return fds[0] if fds else None

    def close(self) -> None:
        """Close the descriptors that were not taken."""
        for fd in self.take_fds():
            fd.close()

    def field_texts(self) -> Iterator[str]:
        """Yield `name=value` for each field, and the number of descriptors."""
        for each in payload_fields(type(self)):
            yield f"{each.name}={_text(getattr(self, each.name), each)}"
        if self.fds:
            yield f"fds={len(self.fds)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.field_texts())})"


@dataclass(repr=False)
class Reply(Message):
    """An answer to a request."""

    answers: Request | None = field(default=None, kw_only=True, compare=False)
    """The request, in a reply that was received."""

    @property
    def label(self) -> str:
        """The name of the request that this answers."""
        return f"reply to {self.answers.label}" if self.answers else type(self).__name__

    @property
    def failed(self) -> bool:
        """True if it says that the request was not done."""
        return False

    @classmethod
    def outcome(cls, ok: bool) -> Reply:
        """Return the reply that says `ok` and nothing else.

        If the request failed and its reply has no field for that, the reply has no payload, as the
        specification demands for GET_CONFIG: a front-end that waits sees an error at once.
        Raises LocalProtocolError for a success that needs values.
        """
        if ok:
            raise LocalProtocolError(f"it is answered with a {cls.__name__}: use reply()")
        return Empty()


@dataclass(repr=False)
class Empty(Reply):
    """A reply without payload where a payload was due: the request failed."""

    @property
    def failed(self) -> bool:
        """True."""
        return True


@dataclass(repr=False)
class Ack(Reply):
    """Whether a request was done: 0, or an error."""

    payload = VALUE
    value: int = 0

    @property
    def failed(self) -> bool:
        """True for anything but 0."""
        return self.value != 0

    @classmethod
    def outcome(cls, ok: bool) -> Reply:
        """Return 0 for success, 1 for failure."""
        return cls(0 if ok else 1)


@dataclass(repr=False)
class Number(Reply):
    """How many there are: queues, or memory slots."""

    payload = VALUE
    value: int


@dataclass(repr=False)
class Request(Message):
    """A request of one side to the other."""

    number: ClassVar[IntEnum]
    requirement: ClassVar[Requirement] = Requirement()
    reply: ClassVar[type[Reply]] = Ack
    always_replied: ClassVar[bool] = False
    """False: it is acknowledged only if REPLY_ACK is on and the request asks for it."""
    postcopy_reply: ClassVar[type[Reply] | None] = None
    """The reply between POSTCOPY_LISTEN and POSTCOPY_END, if it differs then."""
    discarded_fds: ClassVar[int] = 0
    """How many descriptors beyond `fd_counts` are closed unused instead of refusing the request."""

    need_reply: bool = field(default=False, kw_only=True)
    reply_owed: bool = field(default=False, init=False, compare=False)
    """True while the session that received it owes it a reply."""

    @property
    def label(self) -> str:
        """The specification's name, without VHOST_USER_."""
        return self.number.name

    @classmethod
    def is_always_replied(cls) -> bool:
        """Return whether the request is replied also if it does not ask for it."""
        return cls.always_replied or cls.reply is not Ack

    def is_replied(self, negotiation: Negotiation) -> bool:
        """Return whether this request is answered in the present state of the negotiation."""
        if negotiation.postcopy and self.postcopy_reply is not None:
            return 0 not in self.allowed_fds()  # one that maps nothing acknowledges such a reply
        if self.is_always_replied():
            return True
        return self.need_reply and ProtocolFeature.REPLY_ACK in negotiation.protocol_features

    def reply_type(self, negotiation: Negotiation) -> type[Reply]:
        """Return the class of the reply to this request in the present state of the negotiation."""
        return (self.postcopy_reply if negotiation.postcopy else None) or self.reply

    def is_answered_by(self, reply: Reply) -> bool:
        """Return whether the fields of `reply`, which is of the right class, match this request."""
        return True

    def field_texts(self) -> Iterator[str]:
        """Yield `name=value` for each field, the number of descriptors, and `need_reply`."""
        yield from super().field_texts()
        if self.need_reply:
            yield "need_reply"


class FrontendMessage(Request):
    """A request of a front-end; its subclasses are in `protocol.vhost_user.messages`."""

    number: ClassVar[FrontendRequest]


class BackendMessage(Request):
    """A request of a back-end; its subclasses are in `protocol.vhost_user.messages.backend`."""

    number: ClassVar[BackendRequest]


def describe(message: Message) -> str:
    """Return the message in one line, for logs: `SET_VRING_NUM index=0 num=256 need_reply`."""
    return " ".join([message.label, *message.field_texts()])


def payload_fields(type_: type[Message]) -> list[Field[Any]]:
    """Return the dataclass fields that are the message's payload."""
    if type_ not in _PAYLOAD_FIELDS:
        _PAYLOAD_FIELDS[type_] = [each for each in fields(type_) if each.init and not each.kw_only]
    return _PAYLOAD_FIELDS[type_]


_PAYLOAD_FIELDS: dict[type[Message], list[Field[Any]]] = {}
"""Those of the classes that were asked for."""


def _text(value: object, of: Field[Any]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_text(each, of) for each in value)}]"
    if isinstance(value, bytes):
        more = f"... ({len(value)} bytes)" if len(value) > _SHOWN_BYTES else ""
        return (value[:_SHOWN_BYTES].hex(" ") or "-") + more
    if isinstance(value, IntEnum):
        return value.name
    if of.metadata == HEX and isinstance(value, int):
        return hex(value)
    return str(value)
