"""Rules of vhost-user that implementers get wrong; each has a test named test_rule_NN_..."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

RULES = {
    1: "a ring starts with its kick descriptor, not with the first kick, and is read once without a kick",
    2: "started and enabled are independent; features without bit 30 enable all rings, with it none",
    3: "GET_VRING_BASE stops and drains; its index runs free, or holds both places of a packed ring",
    4: "the used index comes from the ring's memory when it starts",
    5: "every queue may be enabled, but only the queues that the driver uses are set up",
    6: "the call message comes again, perhaps without a descriptor: the old descriptor is closed",
    7: "status 0 may come before GET_VRING_BASE: indices are kept",
    8: "features may be set twice; RESET_OWNER keeps the negotiated features",
    9: "reply flags are exactly 5; descriptors come with the first byte, and all are closed",
    10: "a GET_CONFIG reply has the requested length; in-flight and IOTLB payloads are padded",
    11: "a failure is a non-zero acknowledgement, the connection goes on; a refused memory table is logged",
    12: "SET_VRING_ENABLE may ask for a reply, and GET_FEATURES may come as a barrier at any time",
    13: "the back-end does not wait on its channel while the front-end waits",
    14: "an unknown request is answered with an error if it asks for a reply, else logged and ignored",
    15: "ring addresses are the front-end's, descriptor addresses the guest's; with an IOMMU both are IOVA",
    16: "the mmap offset is the file's, rounded down for huge pages; regions go by addresses and size",
    17: "memory that the guest does not share is recognised, and the error says so",
    18: "the memory table changes while rings run",
    19: "the dirty log: pages of 4096, atomic, by guest address; used rings with their flag; it can stop",
    20: "the in-flight buffer: its layout, its versions, the order of resubmission",
    21: "front-ends reconnect: keep listening",
    22: "CONFIG is required by some of QEMU's devices",
    23: "INDIRECT_DESC and EVENT_IDX may be turned on without an offer; rings may be shorter than chains",
    24: "a guest may fall back to INTx",
}

_NAME = re.compile(r"^(?:async )?def test_rule_(\d\d)_", re.MULTILINE)


def numbers() -> set[int]:
    """Return the rules that tests are named after."""
    sources = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py")]
    return {int(number) for source in sources for number in _NAME.findall(source)}


@pytest.mark.parametrize("rule", RULES)
def test_rule_has_a_test_named_after_it(rule: int) -> None:
    assert rule in numbers(), RULES[rule]


def test_no_test_is_named_after_an_unknown_rule() -> None:
    assert numbers() == set(RULES)
