"""The programs: vhost-user, and one for each device."""

from protocol.program.command_line import whole_number
from vhost_user.program.run import run_device

__all__ = ["run_device", "whole_number"]
