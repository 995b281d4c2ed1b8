"""Virtqueues as a device's tasks see them, and requests with a declared header."""

from vhost_user.queue.requests import Requests
from vhost_user.queue.virtqueue import Virtqueue

__all__ = ["Requests", "Virtqueue"]
