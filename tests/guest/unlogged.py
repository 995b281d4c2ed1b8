"""Our blk without a dirty log, which the tests of migration must detect."""

from __future__ import annotations

from vhost_user.backend import ConnectionState
from vhost_user.devices.blk.device import Blk


class Unlogged(Blk):
    """A disk that takes the dirty log, as QEMU does not migrate otherwise, and never marks a page in it."""


def _use_no_log(self: ConnectionState) -> None:
    """Leave memory without a log, whatever the features say."""


ConnectionState.use_log = _use_no_log  # type: ignore[method-assign]
