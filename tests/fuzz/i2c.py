"""Any chains to an I2C adapter.

The first byte says what the driver turned on; the rest is what is in the guest's memory from address 0
on, where a split ring is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.virtio.features import Feature
from protocol.virtio.i2c import REQUEST_HEADER, I2cFeature, RequestFlag, RequestStatus, encode_address
from tests.fuzz.guest import USER, GuardedGuest
from tests.fuzz.harness import DefectError
from tests.fuzz.ring_seeds import memory
from tests.fuzz.rings import parts_of
from vhost_user.devices.i2c.chips.at24 import At24
from vhost_user.devices.i2c.chips.chip import run_transfer
from vhost_user.devices.i2c.chips.lm75 import Lm75
from vhost_user.devices.i2c.requests import parse_request, write_response
from vhost_user.ring import BrokenRingError, RingConfig, SplitRing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.ring import Chain

NO_ZERO_LENGTH = 1
"""Bit of the first byte."""

SIZE = 16
SENSOR, EEPROM, LARGE, SEVERAL = 0x48, 0x50, 0x51, 0x52
_FEATURES = int(Feature.VERSION_1 | Feature.INDIRECT_DESC)

_guest = GuardedGuest()


def one_input(data: bytes) -> None:
    """Fail unless every request is answered, with nothing written but its buffers."""
    features = _FEATURES
    if not (data and data[0] & NO_ZERO_LENGTH):
        features |= int(I2cFeature.ZERO_LENGTH_REQUEST)
    table, avail, used, end = parts_of("split", SIZE)
    _guest.begin(data[1:], [(used, end - used)])
    several = At24("24c04")
    chips = {SENSOR: Lm75(), EEPROM: At24(), LARGE: At24("24c32"), SEVERAL: several, SEVERAL + 1: several}
    try:
        ring = SplitRing(
            _guest.memory, RingConfig(SIZE, USER + table, USER + avail, USER + used, _FEATURES), 0
        )
        while chains := ring.pop(4):
            requests = [parse_request(chain, features) for chain in chains]
            messages = [request.message for request in requests if request.message is not None]
            done = run_transfer(chips, messages)
            if not 0 <= done <= len(messages):
                raise DefectError(f"{done} of {len(messages)} messages were done")
            finished = {id(message) for message in messages[:done]}
            for request in requests:
                is_done = request.message is not None and id(request.message) in finished
                status = RequestStatus.OK if is_done else RequestStatus.ERR
                request.chain.written = write_response(request, status)
                _check(request.chain)
            ring.push(chains)
    except BrokenRingError:
        pass
    _guest.check()
    for chip in (chips[EEPROM], chips[LARGE], several):
        if isinstance(chip, At24) and len(chip.read_memory()) != chip.model.size:
            raise DefectError("an EEPROM has another size now")


def _check(chain: Chain) -> None:
    if chain.written != chain.writable_length:
        raise DefectError(f"{chain.written} bytes are said to be written of {chain.writable_length}")
    for view in chain.writable_buffers:
        _guest.written(view)
    if chain.writable_buffers and chain.writable_buffers[-1][-1] not in list(RequestStatus):
        raise DefectError(f"the status is {chain.writable_buffers[-1][-1]}")


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield transfers as Linux does them, requests that are wrong, and several together."""

    def header(address: int, flags: int = 0) -> bytes:
        return REQUEST_HEADER.pack(encode_address(address), 0, flags)

    read, more = RequestFlag.M_RD, RequestFlag.FAIL_NEXT
    requests = {
        "pointer": ([header(SENSOR, more), b"\0"], [1]),
        "temperature": ([header(SENSOR, read)], [2, 1]),
        "limit": ([header(SENSOR), b"\x03\x28\x00"], [1]),
        "quick": ([header(EEPROM)], [1]),
        "eeprom": ([header(EEPROM), b"\x0e0123456789"], [1]),
        "large": ([header(LARGE), b"\x0f\xfe0123"], [1]),
        "whole": ([header(EEPROM, read)], [100, 200, 1]),
        "absent": ([header(0x20, read)], [4, 1]),
        "ten_bits": ([REQUEST_HEADER.pack(0x55F2, 0, 0), b"\0"], [1]),
        "unknown_flag": ([header(SENSOR, 4), b"\0"], [1]),
        "wrong_way": ([header(SENSOR, read), b"\0"], [1]),
        "no_status": ([header(SENSOR), b"\0"], []),
        "short": ([header(SENSOR)[:5]], [1]),
        "second_block": ([header(SEVERAL + 1), b"\xfe0123"], [1]),
    }
    for name, request in requests.items():
        yield name, b"\0" + memory("split", SIZE, _FEATURES, [request], indirect=False)
    for flags in (0, NO_ZERO_LENGTH):
        few = list(requests.values())[:6]
        yield f"several_{flags}", bytes([flags]) + memory("split", SIZE, _FEATURES, few, indirect=True)
