"""How many ids are left to those who may join a server, and a warning in time."""

# How it works: an id is free, had by a client, held back, or reserved. The registry holds an id back when
# its client leaves, until every client that was told of the leave has left too: QEMU breaks where an id that
# it has seen leave comes back. Reserved are the ids below the highest that a peer of an earlier server may
# have; `mark()` notes the highest id for a later server before the client is told of it, and `refresh()`
# looks at each join whether those peers have gone. Both are locks of the kernel (`id_mark`), which outlive a
# crash for as long as somebody has the memory.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from protocol.ivshmem import MAX_ID

if TYPE_CHECKING:
    from ivshmem_server.memory import SharedMemory
    from protocol.ivshmem import Registry

IDS = MAX_ID + 1
"""How many ids the Doorbell register can name."""

FIRST_WARNING = IDS // 4
"""How few ids are to be left before the log warns; it does so again at each quarter of that."""

_log = logging.getLogger("ivshmem_server")


class IdSupply:
    """What is left of the ids of a registry.

    An id stays held back, though its client has left, until everybody has who saw that: where many come
    and go beside one who stays, they run out. And ids are left out that peers of an earlier server may
    have, who hold the memory though that server was killed: new ones begin above them.
    """

    def __init__(self, registry: Registry, memory: SharedMemory) -> None:
        self._registry = registry
        self._memory = memory
        self._marked = 0
        self._warn_below = FIRST_WARNING
        registry.reserve(memory.ids_of_others())
        if self.reserved:
            _log.warning(
                "peers of an earlier server still have this memory, and ring each other: ids begin at %d, as"
                " they may have those below; neither they nor new peers are told of each other: restart them",
                self.reserved,
                extra={"event": "old peers", "ids_reserved": self.reserved},
            )

    @property
    def reserved(self) -> int:
        """How many ids, from 0 on, peers of an earlier server may have."""
        return self._registry.reserved_ids

    def refresh(self) -> None:
        """Look whether those of an earlier server have gone: the next client may have 0 then."""
        if self.reserved:
            self._registry.reserve(self._memory.ids_of_others())

    def mark(self, id_: int) -> None:
        """Note that a client has this id, for a later server."""
        if id_ >= self._marked:
            self._marked = id_ + 1
            self._memory.mark_ids(self._marked)

    @property
    def left(self) -> int:
        """How many clients may still join before somebody leaves for whom others have to leave, too."""
        return self._registry.available_ids

    @property
    def held(self) -> int:
        """How many ids are not in use and cannot be given."""
        return IDS - self.left - len(self._registry) - self.reserved

    def check(self, oldest: object) -> None:
        """Warn where few are left; `oldest` is the client that has been connected for longest, in words."""
        left, held = self.left, self.held
        if left >= FIRST_WARNING:
            self._warn_below = FIRST_WARNING
        if left >= self._warn_below or not held + self.reserved:
            return
        self._warn_below = left // 4
        _log.warning(
            "%d of %d ids are left: %s; restart those that have been connected for longest (%s), or start the"
            " server with --sticky",
            *(left, IDS, describe_missing(held, self.reserved), oldest),
            extra={"event": "few ids", "ids_left": left, "ids_held": held},
        )


def describe_missing(held: int, reserved: int) -> str:
    """Say why ids that are not in use cannot be given."""
    parts = []
    if held:
        parts.append(f"{held} are held back, as connected peers have seen them leave")
    if reserved:
        parts.append(f"{reserved} may be those of peers of an earlier server")
    return ", ".join(parts)
