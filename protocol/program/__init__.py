"""The shared parts of all command lines: options, errors, logs, signals, readiness."""

from protocol.program import signals
from protocol.program.command_line import UserError, parsed_by, whole_number
from protocol.program.readiness import notify, watchdog
from protocol.program.units import Seconds, parse_rate, parse_share, parse_time

__all__ = [
    "Seconds",
    "UserError",
    "notify",
    "parse_rate",
    "parse_share",
    "parse_time",
    "parsed_by",
    "signals",
    "watchdog",
    "whole_number",
]
