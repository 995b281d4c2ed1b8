"""Requests and their answers over a stream, of both ends of both sockets.

An `Asker` makes requests, an `Answerer` answers them; a `Channel` is the asker of a back-end.
"""

from vhost_user.transport.answerer import Answer, Answerer, RequestHandler
from vhost_user.transport.asker import Asker
from vhost_user.transport.channel import Channel, FrontendError
from vhost_user.transport.errors import ConnectionLostError

__all__ = [
    "Answer",
    "Answerer",
    "Asker",
    "Channel",
    "ConnectionLostError",
    "FrontendError",
    "RequestHandler",
]
