"""The back-end: connections of front-ends, their vrings, and what a device needs of them.

`serve()` serves a device to one front-end after the other, and `serve_connection()` to one.
`ConnectionState` is for tests that replace a part of it.
"""

from vhost_user.backend.connection import serve_connection
from vhost_user.backend.handlers import HANDLERS
from vhost_user.backend.server import serve
from vhost_user.backend.state import ConnectionState

__all__ = ["HANDLERS", "ConnectionState", "serve", "serve_connection"]
