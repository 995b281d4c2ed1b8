"""Runs in a guest: uses chips of the guest's host as vhost-user-i2c does."""

from __future__ import annotations

import sys

import trio

from protocol.program.command_line import UserError
from vhost_user.devices.i2c.chips.chip import I2cMessage
from vhost_user.devices.i2c.host import HostBus, find_bus

SENSOR, EEPROM, ABSENT = 0x48, 0x50, 0x21


def read(address: int, pointer: int, size: int) -> list[I2cMessage]:
    return [I2cMessage(address, data=bytes([pointer])), I2cMessage(address, read=True, size=size)]


I2C = {
    "temperature": read(SENSOR, 0, 2),
    "write": [I2cMessage(EEPROM, data=b"\x10a host's")],
    "read": read(EEPROM, 0x10, 8),
    "two chips": read(SENSOR, 0, 1) + read(EEPROM, 0x12, 2),
    "quick": [I2cMessage(SENSOR)],
    "absent": [I2cMessage(ABSENT)],
    "group that fails": [*read(SENSOR, 0, 2), I2cMessage(ABSENT, data=b"\0")],
    "after it": read(SENSOR, 1, 1),
}
SMBUS = {
    "quick": [I2cMessage(SENSOR)],
    "word": read(SENSOR, 0, 2),
    "write word": [I2cMessage(SENSOR, data=b"\x01\xab\xcd")],
    "byte": read(SENSOR, 1, 1),
    "write byte": [I2cMessage(SENSOR, data=b"\x02\x12")],
    "write code": [I2cMessage(SENSOR, data=b"\x02")],
    "read byte": [I2cMessage(SENSOR, read=True, size=1)],
    "write block": [I2cMessage(EEPROM, data=b"\x10a host's")],
    "block": read(EEPROM, 0x10, 8),
    "too long": read(EEPROM, 0, 33),
    "two chips": read(SENSOR, 0, 1) + read(EEPROM, 0x12, 2),
    "absent": [I2cMessage(ABSENT)],
    "after it": read(SENSOR, 2, 1),
}


async def main(kind: str, name: str) -> None:
    """Do transfers on the adapter that is called `name`, and print what comes of each."""
    try:
        bus = HostBus(find_bus(name), [SENSOR, EEPROM, ABSENT])
    except UserError as error:
        print(error)
        return
    for title, messages in {"i2c": I2C, "smbus": SMBUS}[kind].items():
        done = await bus.transfer(messages)
        data = [message.data for message in messages if message.read and done]
        print(f"{title}: {done} of {len(messages)}", *data)
    bus.close()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
