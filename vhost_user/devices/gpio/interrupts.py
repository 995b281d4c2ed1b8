"""The interrupt of a GPIO line and its states (virtio 1.3, section 5.18.7).

A driver enables it over the request queue, and unmasks it by giving a buffer over the event queue. That
buffer comes back with the interrupt, which is masked again from then on.

How it works: an interrupt is disabled (type NONE), masked (no buffer) or unmasked (with one). An edge that
comes while it is masked is latched, once; a level is looked at again when it is unmasked. The tasks of both
queues, of the chip and of scripts call it in one thread, and no method but the two that wait awaits.

The buffer is a chain of the event queue, taken and not completed: it belongs to the interrupt until an
interrupt, a disable or the queue's stop returns it. A back-end that dies leaves it in the in-flight buffer;
what was latched is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from protocol.virtio.gpio import IRQ_RESPONSE, IrqStatus, IrqType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhost_user.ring.chain import Chain


class Interrupt:
    """The interrupt of one line."""

    def __init__(self) -> None:
        self.type = IrqType.NONE
        """What interrupts the driver; NONE: the interrupt is disabled."""
        self.delivered = 0
        """How many interrupts the driver was given."""
        self.merged = 0
        """How many edges came while one was latched already, and so never reach the driver."""
        self._buffer: Chain | None = None
        self._latched = False
        self._level = 0
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def buffer(self) -> Chain | None:
        """The driver's buffer; None: the interrupt is masked."""
        return self._buffer

    def enable(self, kind: IrqType, level: int) -> None:
        """Interrupt the driver by `kind`, not NONE, from now on; the line is at `level`.

        A driver should disable the interrupt before it enables another type, but Linux's
        irq_set_irq_type() does not: what was latched is forgotten, and the buffer stays.
        """
        if kind != self.type:
            self._latched = False
        self.type = kind
        self._level = level
        self._deliver_if_active()
        self._changed.unpark_all()

    def disable(self) -> None:
        """Interrupt the driver no longer: forget what is latched, and return its buffer."""
        self.type = IrqType.NONE
        self._latched = False
        if self._buffer is not None:
            self._return(IrqStatus.INVALID)
        self._changed.unpark_all()

    def unmask(self, chain: Chain) -> None:
        """Take the driver's buffer; it comes back at once where there is an interrupt, or where it is wrong.

        Wrong is one for an interrupt that is not enabled, and a second one.
        """
        if self.type is IrqType.NONE or self._buffer is not None:
            give_back(chain, IrqStatus.INVALID)
            return
        self._buffer = chain
        if self._latched:
            self._return(IrqStatus.VALID)
        else:
            self._deliver_if_active()
        self._changed.unpark_all()

    def signal(self, level: int) -> None:
        """Note that the line has got to `level`."""
        self._level = level
        if not self.type.fires_at(level):
            return
        if self._buffer is not None:
            self._return(IrqStatus.VALID)
        elif not self.type.is_level:
            self.merged += self._latched
            self._latched = True

    def would_be_lost(self, level: int) -> bool:
        """Tell whether the driver could miss that the line gets to `level` now: it is not done with the last.

        A driver that handles an edge may look at the line, so it is not to change meanwhile, in
        either direction. An interrupt by level is over when its driver has made it so.
        """
        if self.type is IrqType.NONE or self._buffer is not None:
            return False
        return not self.type.is_level or self.type.fires_at(level)

    async def until_taken(self, level: int) -> None:
        """Wait until the driver notices if the line gets to `level`: at once where it wants no interrupts."""
        while self.would_be_lost(level):
            await self._changed.park()

    async def until_handled(self) -> None:
        """Wait until the driver is done with the last edge: at once where it wants none."""
        while not (self.type is IrqType.NONE or self.type.is_level or self._buffer is not None):
            await self._changed.park()

    def let_go(self) -> None:
        """Forget the buffer, which is put back or whose queue is gone."""
        self._buffer = None

    def _deliver_if_active(self) -> None:
        if self._buffer is not None and self.type.is_level and self.type.fires_at(self._level):
            self._return(IrqStatus.VALID)

    def _return(self, status: IrqStatus) -> None:
        chain, self._buffer = self._buffer, None
        assert chain is not None
        self._latched = False
        self.delivered += status is IrqStatus.VALID
        give_back(chain, status)


def give_back(chain: Chain, status: IrqStatus) -> None:
    """Return a buffer of the event queue to the driver; where it has no room for a status, without one."""
    chain.writable.write(IRQ_RESPONSE.pack(status))
    chain.complete()


def put_back_buffers(interrupts: Iterable[Interrupt], last: int) -> None:
    """Leave the buffers of a queue that stops to whoever serves it next; `last` is its last chain's number.

    One that was taken before others, of which some have come back, cannot stay in the ring. It comes
    back to the driver as INVALID, by which Linux knows to queue it again: as when a machine pauses.
    """
    held = [interrupt for interrupt in interrupts if interrupt.buffer is not None]
    for interrupt in sorted(held, key=lambda one: -_chain(one).number):
        chain = _chain(interrupt)
        interrupt.let_go()
        if chain.number == last:
            chain.put_back()
            last -= 1
        else:
            give_back(chain, IrqStatus.INVALID)


def _chain(interrupt: Interrupt) -> Chain:
    assert interrupt.buffer is not None
    return interrupt.buffer
