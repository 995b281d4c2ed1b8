"""Tracing: a proxy between front-ends and a back-end, and the formats of its events."""

from vhost_user.trace.events import Event, Message, Note, Side
from vhost_user.trace.format import DEVICE_TYPES, Format, Json, Text
from vhost_user.trace.proxy import trace

__all__ = ["DEVICE_TYPES", "Event", "Format", "Json", "Message", "Note", "Side", "Text", "trace"]
