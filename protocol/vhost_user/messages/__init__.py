"""The messages of vhost-user, a module a subject, and the tables of requests.

A module holds what belongs to its subject: values of fields, payloads, requests, replies. A request is in
its side's table because its module is in the registry's list of subjects; `protocol.vhost_user` exports
its class. QEMU docs/interop/vhost-user.rst, "Front-end message types" and "Back-end message types";
docs/protocol.md lists them all.
"""

from protocol.vhost_user.messages.registry import BACKEND_REQUESTS, FRONTEND_REQUESTS

__all__ = ["BACKEND_REQUESTS", "FRONTEND_REQUESTS"]
