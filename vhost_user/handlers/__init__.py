"""What the back-end does with each request of the front-end: a function each, in one table."""

from vhost_user.handlers import device, memory, migration, setup, vrings
from vhost_user.handlers.table import HANDLERS, Answer

__all__ = ["HANDLERS", "Answer", "device", "memory", "migration", "setup", "vrings"]
