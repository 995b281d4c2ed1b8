"""Where a packed ring is, as far as its descriptors tell (virtio 1.3, section 2.8.1).

For front-ends that do not know it: of a back-end that died, or of one that told half of it. A descriptor's
AVAIL flag is the driver's wrap counter when it was made available last, and USED equals it once the
device has given back a chain at that place. The descriptors of a longer chain behind its first one stay
as the driver wrote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from protocol.virtio import packed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.ring.words import Words


class Place(NamedTuple):
    """A descriptor's index, and the wrap counter there."""

    slot: int
    wrap: bool


def settle(
    flags: Words, size: int, avail: Place, used: Place, *, doubted: bool
) -> tuple[Place, Place] | None:
    """Return where a ring goes on: at these places, if that can be, or behind all that was given back.

    None where the first cannot be, and the second is not to be seen. Places that are `doubted` are
    where a ring begins: they cannot be where the last descriptor, or the first one, was made available in
    the other lap and not given back, either. `flags` are the ring's words of 16 bits.
    """
    can_be = _can_be_at(flags, size, avail, used)
    others = (flags[_index(slot)] for slot in (0, size - 1))
    if can_be and not (doubted and any(_is_open(each, not avail.wrap) for each in others)):
        return avail, used
    place = _find(flags, size)
    if place is None:
        return (avail, used) if can_be else None
    return place, place


def _can_be_at(flags: Words, size: int, avail: Place, used: Place) -> bool:
    """Tell whether a ring can go on at these places: nothing from `used` on was given back."""
    taken = avail.slot - used.slot + (size if used.wrap != avail.wrap else 0)
    if not 0 <= taken <= size:
        return False
    if not all(_is_open(flags[_index(slot)], wrap) for slot, wrap in _walk(used, taken, size)):
        return False
    # From here on: what is available, none of it used, and then what is not available again yet, but may
    # be about to be, and the first of those last. It is read from the end on, as more may be made available.
    lap = [(flags[_index(slot)], wrap) for slot, wrap in reversed(list(_walk(avail, size, size)))][::-1]
    waiting = [_is_of(*each) for each in lap]
    first_free = waiting.index(False) if False in waiting else size
    if True in waiting[first_free + 1 : first_free + 2]:
        del lap[first_free], waiting[first_free]
        first_free = waiting.index(False, first_free) if False in waiting[first_free:] else len(waiting)
    return all(_is_open(*each) for each in lap[:first_free]) and not any(waiting[first_free:])


def _find(flags: Words, size: int) -> Place | None:
    """Return the place behind all that was given back; None where longer chains leave it open."""
    place = _drivers(flags, size)
    # The lap before, from its end on. Its wrap counters are the others.
    lap = reversed(list(_walk(place, size, size)))
    states = [_is_open(flags[_index(slot)], not wrap) for slot, wrap in lap]
    taken = states.index(False) if False in states else size
    if any(states[taken:]):
        return None
    slot = place.slot - taken
    return Place(slot % size, place.wrap if slot >= 0 else not place.wrap)


def _drivers(flags: Words, size: int) -> Place:
    """Return where the driver makes the next descriptor available."""
    wrap = bool(flags[_index(0)] & packed.AVAIL)
    for slot in range(1, size):
        if bool(flags[_index(slot)] & packed.AVAIL) != wrap:
            return Place(slot, wrap)
    return Place(0, not wrap)


def _walk(place: Place, count: int, size: int) -> Iterator[Place]:
    """Yield `count` places from `place` on."""
    slot, wrap = place
    for _ in range(count):
        yield Place(slot, wrap)
        slot += 1
        if slot == size:
            slot, wrap = 0, not wrap


def _index(slot: int) -> int:
    return slot << 3 | packed.DESCRIPTOR_FLAGS


def _is_of(flags: int, wrap: bool) -> bool:
    """Tell whether a descriptor was made available in the lap of this wrap counter."""
    return bool(flags & packed.AVAIL) == wrap


def _is_open(flags: int, wrap: bool) -> bool:
    """Tell whether it was, and nothing was given back there since."""
    return flags & (packed.AVAIL | packed.USED) == packed.available_flags(wrap)
