"""The states of a vring: every event is either in the table or raises, and the table fits what happens."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from protocol.vhost_user import GetVringBase, ResetDevice, SetVringEnable, VringBase
from tests.vhost_user.echo import Echo
from tests.vhost_user.raw_frontend import attached
from vhost_user.backend import vring as vring_module
from vhost_user.backend.vring_states import (
    TRANSITIONS,
    IllegalEventError,
    VringEvent,
    VringState,
    next_state,
)
from vhost_user.frontend.driver_ring import Buffer

if TYPE_CHECKING:
    from vhost_user import Virtqueue

CASES = list(product(VringState, VringEvent))


@pytest.mark.parametrize(("state", "event"), CASES, ids=lambda each: each.name)
def test_event_is_in_the_table_or_raises(state: VringState, event: VringEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalEventError, match=f"{event.name} cannot happen .* {state.name}"):
            next_state(state, event)


@pytest.mark.parametrize("state", VringState, ids=lambda each: each.name)
def test_no_state_is_without_a_way_in_and_out(state: VringState) -> None:
    ends = {after for (before, _), after in TRANSITIONS.items() if before is not after}
    starts = {before for (before, _), after in TRANSITIONS.items() if before is not after}
    assert state in ends & starts


@given(st.lists(st.sampled_from(VringEvent)))
def test_a_ring_has_a_task_from_serve_to_end_and_only_then(events: list[VringEvent]) -> None:
    state, has_task = VringState.STOPPED, False
    for event in events:
        try:
            state = next_state(state, event)
        except IllegalEventError:
            continue
        has_task = {VringEvent.SERVE: True, VringEvent.END: False}.get(event, has_task)
        assert state.has_task is has_task


async def test_states_of_a_ring_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Served, disabled, served again, left by the device, stopped, broken, and reset."""

    class Brief(Echo):
        """Serves its queue until it is told to leave it."""

        leaves = False

        async def run_queue(self, queue: Virtqueue) -> None:
            if not self.leaves:
                await super().run_queue(queue)

    seen: list[VringEvent] = []

    def noted(state: VringState, event: VringEvent) -> VringState:
        seen.append(event)
        return next_state(state, event)

    monkeypatch.setattr(vring_module, "next_state", noted)
    device = Brief()
    device.num_queues = 1
    event = VringEvent
    async with attached(device) as frontend:
        queue = await frontend.start()
        assert await queue.exchange([b"ping"], [8]) == [b"ping"]
        assert seen[-3:] == [event.START, event.STOP, event.SERVE]
        seen.clear()
        await frontend.request(SetVringEnable(0, False))
        assert seen == [event.STOP, event.END]
        seen.clear()
        device.leaves = True
        await frontend.request(SetVringEnable(0, True))
        await wait_all_tasks_blocked()
        await frontend.ask(VringBase, GetVringBase(0))
        assert seen[1:] == [event.SERVE, event.STOP, event.END, event.WITHDRAW]
        seen.clear()
        device.leaves = False
        await queue.start()
        queue.ring.add([Buffer(0, 1)], [])
        queue.ring.publish()
        queue.kick.signal()
        await queue.err.wait()
        await wait_all_tasks_blocked()
        assert seen[-1] is event.BREAK
        seen.clear()
        await frontend.request(ResetDevice())
        assert seen == [event.STOP, event.END, event.STOP, event.WITHDRAW]
