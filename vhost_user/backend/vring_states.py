"""The states of a vring, its events, and the transitions between them."""

# How it works: the handlers of a front-end's requests run one after the other, so a vring has one event from
# the front-end at a time. BREAK and END come from the ring's own task, at any time while there is one, also
# when the connection ends and the task is cancelled. An event that the table does not have for a state is a
# fault of ours: `next_state()` raises, and the connection ends with a traceback, rather than to go on with a
# ring that two tasks serve, or none.
#
# While there is a task it alone uses the ring. In STOPPED and WAITING nothing refers to the ring or the
# guest's memory, and everything that was said of the ring may change. If the process dies in any state, the
# ring's state is in the guest's memory and in the in-flight buffer; the front-end tells the next back-end the
# same things again, and the ring begins in STOPPED there.

from __future__ import annotations

from enum import Enum


class VringState(Enum):
    """Where a vring is in its life. Whether it is enabled is not part of that: it may change in any state."""

    STOPPED = "it was not started, or was stopped for good (vhost-user, 'Ring states': stopped)"
    WAITING = "it was started; it is disabled, or its size or addresses are not known yet"
    RUNNING = "a task serves it, or waits for STOP because run_queue() has returned"
    BROKEN = "the driver broke the ring: its task waits for STOP"
    DRAINING = "its task is to end, and waits until the device has completed what it has"

    @property
    def has_task(self) -> bool:
        """True while a task has the ring."""
        return self in {VringState.RUNNING, VringState.BROKEN, VringState.DRAINING}


class VringEvent(Enum):
    """What happens to a vring."""

    START = "SET_VRING_KICK, or the first kick in-band"
    SERVE = "it is started, enabled and wholly described: a task begins"
    BREAK = "the driver broke the ring, and the device has left it"
    STOP = "a change to a ring that is served, a reset, GET_VRING_BASE, or the end of the connection"
    END = "its task has ended"
    WITHDRAW = "GET_VRING_BASE, RESET_DEVICE, or a new set-up: it is to be started again first"


class IllegalEventError(Exception):
    """An event that cannot happen in this state: a fault of ours, not of the front-end."""


_S, _E = VringState, VringEvent

TRANSITIONS: dict[tuple[VringState, VringEvent], VringState] = {
    (_S.STOPPED, _E.START): _S.WAITING,
    (_S.STOPPED, _E.STOP): _S.STOPPED,
    (_S.STOPPED, _E.WITHDRAW): _S.STOPPED,
    (_S.WAITING, _E.START): _S.WAITING,
    (_S.WAITING, _E.SERVE): _S.RUNNING,
    (_S.WAITING, _E.STOP): _S.WAITING,
    (_S.WAITING, _E.WITHDRAW): _S.STOPPED,
    (_S.RUNNING, _E.BREAK): _S.BROKEN,
    (_S.RUNNING, _E.STOP): _S.DRAINING,
    (_S.RUNNING, _E.END): _S.WAITING,
    (_S.BROKEN, _E.STOP): _S.DRAINING,
    (_S.BROKEN, _E.END): _S.WAITING,
    (_S.DRAINING, _E.BREAK): _S.DRAINING,
    (_S.DRAINING, _E.STOP): _S.DRAINING,
    (_S.DRAINING, _E.END): _S.WAITING,
}
"""The state after each event that may happen in a state. (RUNNING, END) is the end by cancellation."""


def next_state(state: VringState, event: VringEvent) -> VringState:
    """Return the state after `event`. Raises IllegalEventError where it cannot happen."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalEventError(f"{event.name} cannot happen to a vring that is {state.name}") from None
