"""The messages of vhost-user: a module for each subject, and the tables of both sides' requests.

A module holds what belongs to its subject: values of fields, payloads, requests, replies. A request is
in its table because its module is one of the subjects. The names of the classes are exported by
`protocol.vhost_user`. QEMU docs/interop/vhost-user.rst, "Front-end message types" and "Back-end message
types"; docs/protocol.md has the tables for reading.
"""

from __future__ import annotations

from typing import TypeVar

from protocol.vhost_user.message import BackendMessage, FrontendMessage, Request
from protocol.vhost_user.messages import backend, device_types, memory, migration, setup, vrings

__all__ = ["BACKEND_REQUESTS", "FRONTEND_REQUESTS"]

_SUBJECTS = (setup, memory, vrings, migration, device_types, backend)

_RequestType = TypeVar("_RequestType", bound=Request)


def _by_number(side: type[_RequestType]) -> dict[int, type[_RequestType]]:
    """Return the classes of one side's requests by number, in the order of numbers."""
    names = [name for subject in _SUBJECTS for name in vars(subject).values()]
    kinds = [name for name in names if isinstance(name, type) and issubclass(name, side)]
    return {kind.number: kind for kind in sorted(filter(_has_number, kinds), key=lambda kind: kind.number)}


def _has_number(kind: type[Request]) -> bool:
    return hasattr(kind, "number")


FRONTEND_REQUESTS = _by_number(FrontendMessage)
"""The class of each front-end request by its number."""

BACKEND_REQUESTS = _by_number(BackendMessage)
"""The class of each back-end request by its number."""
