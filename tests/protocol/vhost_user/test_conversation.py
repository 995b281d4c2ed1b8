"""Two sessions that talk in any order, compared with a model of replies owed and due."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.errors import LocalProtocolError
from protocol.vhost_user import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    BackendChannel,
    FrontendChannel,
    Message,
    ProtocolFeature,
    Refused,
    Request,
    pack,
)
from tests.protocol.vhost_user.samples import messages, replies
from tests.protocol.vhost_user.wire import (
    ALL_FEATURES,
    ALL_PROTOCOL,
    NEED_REPLY,
    VERSION,
    agreed,
    backend,
    by_name,
    frontend,
    new_fd,
    new_fds,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protocol.fds import OwnedFd
    from protocol.vhost_user import Negotiation, Packet, Requester, Responder

CHANGING = {"SET_FEATURES", "SET_PROTOCOL_FEATURES", "GET_FEATURES", "GET_PROTOCOL_FEATURES"}
CHANGING |= {"POSTCOPY_LISTEN", "POSTCOPY_END"}
"""What changes what both sides may do, or how; their tests are elsewhere."""


class Conversation(RuleBasedStateMachine):
    """A requester, a responder, what is on its way between them, and what is still to be answered."""

    def sessions(self, negotiation: Negotiation) -> tuple[Requester, Responder, Mapping[int, type[Request]]]:
        raise NotImplementedError

    @initialize(ack=st.booleans())
    def start(self, ack: bool) -> None:
        self.has_ack = ack
        protocol = ALL_PROTOCOL if ack else ALL_PROTOCOL.without(ProtocolFeature.REPLY_ACK)
        self.requester, self.responder, table = self.sessions(agreed(ALL_FEATURES, protocol))
        kinds = [kind for kind in table.values() if by_name(kind) not in CHANGING]
        self.kinds = [kind for kind in kinds if not kind.requirement.protocol.without(protocol)]
        self.asked: deque[tuple[bytes, list[OwnedFd]]] = deque()
        """On its way to the responder."""
        self.answered: deque[tuple[bytes, list[OwnedFd]]] = deque()
        """On its way back."""
        self.due: list[Request] = []
        """What the requester made that is to be answered, in order."""
        self.owed: list[Request | Refused] = []
        """What the responder has of it, in order."""
        self.opened: list[OwnedFd] = []

    def teardown(self) -> None:
        if not hasattr(self, "responder"):
            return
        while self.asked:
            self.deliver_request(0)
        while self.owed:
            self.refuse()
        while self.answered:
            self.deliver_reply(0)
        assert self.requester.waiting == ()
        for fd in self.opened:
            assert fd.closed

    # The requester

    @rule(data=st.data(), need_reply=st.booleans())
    def ask(self, data: st.DataObject, need_reply: bool) -> None:
        kind = data.draw(st.sampled_from(self.kinds))
        request = data.draw(messages(kind))
        assert isinstance(request, Request)
        request.fds = new_fds(data.draw(st.sampled_from(sorted(request.allowed_fds()))))
        self.opened += request.fds
        if need_reply and not self.has_ack:
            with pytest.raises(LocalProtocolError, match="only where REPLY_ACK was negotiated"):
                self.requester.request(request, need_reply=True)
            need_reply = False
        packet = self.requester.request(request, need_reply=need_reply)
        self.asked.append(self.on_its_way(packet))
        request.close()
        if self.requester.waiting[len(self.due) :]:
            self.due.append(request)

    @rule(number=st.integers(900, 914), asks=st.booleans(), count=st.integers(0, 3))
    def ask_what_nobody_knows(self, number: int, asks: bool, count: int) -> None:
        """As another program may, whose replies this requester would not wait for."""
        asks &= not self.has_ack
        fds = [new_fd() for _ in range(count)]
        self.opened += fds
        self.asked.append((pack(number, VERSION | NEED_REPLY * asks, b"?"), fds))

    def on_its_way(self, packet: Packet) -> tuple[bytes, list[OwnedFd]]:
        fds = [new_fd() for _ in packet.fds]
        self.opened += fds
        return packet.data, fds

    # What is between them

    @precondition(lambda self: self.asked)
    @rule(step=st.integers(0, 30))
    def deliver_request(self, step: int) -> None:
        for event in self.deliver(self.responder, self.asked.popleft(), step):
            assert isinstance(event, (Request, Refused))
            if event.reply_owed:
                self.owed.append(event)
            if isinstance(event, Message):
                event.close()

    @precondition(lambda self: self.answered)
    @rule(step=st.integers(0, 30))
    def deliver_reply(self, step: int) -> None:
        [reply] = self.deliver(self.requester, self.answered.popleft(), step)
        assert isinstance(reply, Message)
        assert reply.answers is self.due.pop(0)  # type: ignore[attr-defined]
        reply.close()

    def deliver(
        self, session: Responder | Requester, message: tuple[bytes, list[OwnedFd]], step: int
    ) -> list[object]:
        """Give a message to a session in reads of at most `step` bytes; of 0: as many as it wants."""
        data, fds = message
        events: list[object] = []
        while data:
            size = min(step or len(data), session.bytes_wanted)
            events += session.receive(data[:size], fds)
            data, fds = data[size:], []
        return events

    # The responder

    @precondition(lambda self: self.owed)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        event = self.owed[0]
        assert isinstance(event, Request)
        reply = data.draw(replies(event))
        reply.fds = new_fds(data.draw(st.sampled_from(sorted(reply.allowed_fds()))))
        self.opened += reply.fds
        self.answered.append(self.on_its_way(self.responder.reply(event, reply)))
        self.owed.pop(0)
        reply.close()

    @precondition(lambda self: self.owed)
    @rule()
    def refuse(self) -> None:
        packet = self.responder.acknowledge(self.owed.pop(0), ok=False)
        assert packet is not None
        self.answered.append(self.on_its_way(packet))

    @precondition(lambda self: len(self.owed) > 1)
    @rule()
    def answer_out_of_turn(self) -> None:
        with pytest.raises(LocalProtocolError, match="is to be answered before"):
            self.responder.acknowledge(self.owed[1], ok=False)

    # What must hold

    @invariant()
    def both_know_what_is_to_be_answered(self) -> None:
        if hasattr(self, "responder"):
            assert self.requester.waiting == tuple(self.due)
            assert self.responder.owed == tuple(self.owed)
            assert len(self.due) >= len(self.owed) + len(self.answered)


class FrontendAsks(Conversation):
    def sessions(self, negotiation: Negotiation) -> tuple[Requester, Responder, Mapping[int, type[Request]]]:
        return frontend(negotiation), backend(negotiation), FRONTEND_REQUESTS


class BackendAsks(Conversation):
    def sessions(self, negotiation: Negotiation) -> tuple[Requester, Responder, Mapping[int, type[Request]]]:
        return (
            BackendChannel(backend(negotiation)),
            FrontendChannel(frontend(negotiation)),
            BACKEND_REQUESTS,
        )


TestFrontendAsks = FrontendAsks.TestCase
TestBackendAsks = BackendAsks.TestCase
