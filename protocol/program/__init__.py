"""What command lines of both products share: options, errors, logs, signals, readiness."""

from protocol.program import signals
from protocol.program.readiness import notify, watchdog

__all__ = ["notify", "signals", "watchdog"]
