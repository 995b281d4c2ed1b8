"""The programs: vhost-user, and one for each device; what a device's own command line needs of them."""

from protocol.program import Seconds, UserError, parsed_by, whole_number
from protocol.program.run_main import run_main
from vhost_user.program.run import run_device

__all__ = ["Seconds", "UserError", "parsed_by", "run_device", "run_main", "whole_number"]
