"""What the back-end does with each request of the front-end: a function each, in one table."""

from vhost_user.backend.handlers import device_types, memory, migration, setup, vrings
from vhost_user.backend.handlers.registration import HANDLERS

__all__ = ["HANDLERS", "device_types", "memory", "migration", "setup", "vrings"]
