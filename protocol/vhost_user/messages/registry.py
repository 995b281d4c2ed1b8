"""The tables of requests: the class of each number, for each side."""

from __future__ import annotations

from typing import TypeVar

from protocol.vhost_user.message import BackendMessage, FrontendMessage, Request
from protocol.vhost_user.messages import backend, device_types, memory, migration, setup, vrings

_SUBJECTS = (setup, memory, vrings, migration, device_types, backend)

_RequestType = TypeVar("_RequestType", bound=Request)


def _by_number(side: type[_RequestType]) -> dict[int, type[_RequestType]]:
    """Return the classes of one side's requests by number, in the order of numbers."""
    names = [name for subject in _SUBJECTS for name in vars(subject).values()]
    kinds = [name for name in names if isinstance(name, type) and issubclass(name, side)]
    numbered = [kind for kind in kinds if hasattr(kind, "number")]
    return {kind.number: kind for kind in sorted(numbered, key=lambda kind: kind.number)}


FRONTEND_REQUESTS = _by_number(FrontendMessage)
"""The class of each front-end request by its number."""

BACKEND_REQUESTS = _by_number(BackendMessage)
"""The class of each back-end request by its number."""
