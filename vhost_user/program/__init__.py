"""The programs, and what the command line of a device needs."""

from protocol.program import Seconds, UserError, parsed_by, whole_number
from protocol.program.run_main import run_main
from vhost_user.program.run import run_device

__all__ = ["Seconds", "UserError", "parsed_by", "run_device", "run_main", "whole_number"]
