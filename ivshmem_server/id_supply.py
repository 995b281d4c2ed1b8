"""How many ids are left to those who may join a server, and a warning in time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from protocol.ivshmem import MAX_ID

if TYPE_CHECKING:
    from protocol.ivshmem import Registry

IDS = MAX_ID + 1
"""How many ids the Doorbell register can name."""

FIRST_WARNING = IDS // 4
"""How few ids are to be left before the log warns; it does so again at each quarter of that."""

_log = logging.getLogger("ivshmem_server")


class IdSupply:
    """What is left of the ids of a registry.

    An id stays held back, though its client has left, until everybody has who saw that: where many come
    and go beside one who stays, they run out.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._warn_below = FIRST_WARNING

    @property
    def left(self) -> int:
        """How many clients may still join before somebody leaves for whom others have to leave, too."""
        return self._registry.available_ids

    @property
    def held(self) -> int:
        """How many ids nobody has and nobody gets."""
        return IDS - self.left - len(self._registry)

    def check(self, oldest: object) -> None:
        """Warn where few are left; `oldest` is the client that has been connected for longest, in words."""
        left, held = self.left, self.held
        if left >= FIRST_WARNING:
            self._warn_below = FIRST_WARNING
        if left >= self._warn_below or not held:
            return
        self._warn_below = left // 4
        _log.warning(
            "%d of %d ids are left: %d are held back, as connected peers have seen them leave; restart those"
            " that have been connected for longest (%s), or start the server with --sticky",
            *(left, IDS, held, oldest),
            extra={"event": "few ids", "ids_left": left, "ids_held": held},
        )
