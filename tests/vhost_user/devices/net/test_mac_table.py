"""Which guest has which address: learning, moving, forgetting, and guests that invent addresses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vhost_user.devices.net.ports.switch import MacTable

A, B = bytes.fromhex("52540000aa01"), bytes.fromhex("52540000aa02")
GROUP = bytes.fromhex("01005e000001")


def address(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def test_address_is_where_it_was_seen_last() -> None:
    table = MacTable()
    assert table.find(A, 0) is None
    table.learn(A, 1, 0)
    assert (table.find(A, 1), table.find(B, 1)) == (1, None)
    table.learn(A, 2, 1)
    assert table.find(A, 1) == 2
    assert table.entries(3) == [(A, 2, 2)]


def test_address_is_forgotten_that_is_not_seen() -> None:
    table = MacTable(age=10)
    table.learn(A, 1, 0)
    table.learn(B, 1, 0)
    table.learn(A, 1, 5)
    assert table.find(B, 10) == 1
    assert table.find(B, 10.1) is None
    assert table.entries(15) == [(A, 1, 10)]
    assert len(table) == 1
    assert table.entries(15.1) == []
    assert len(table) == 0


def test_group_is_nobodys_address() -> None:
    table = MacTable()
    table.learn(GROUP, 1, 0)
    assert table.find(GROUP, 0) is None


def test_port_that_invents_addresses_forgets_its_own_only() -> None:
    table = MacTable(most=4)
    table.learn(A, 0, 0)
    for number in range(100):
        table.learn(address(number), 1, number)
    assert len(table) == 5
    assert table.find(A, 100) == 0
    assert [table.find(address(number), 100) for number in range(94, 100)] == [None, None, 1, 1, 1, 1]


def test_port_whose_link_is_down_has_no_addresses() -> None:
    table = MacTable()
    table.learn(A, 1, 0)
    table.learn(B, 2, 0)
    table.forget(1)
    table.forget(7)
    assert (table.find(A, 0), table.find(B, 0)) == (None, 2)
    table.learn(A, 2, 1)
    assert table.find(A, 1) == 2


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["learn", "learn", "learn", "forget"]),
        st.integers(0, 9),
        st.integers(0, 3),
        st.floats(0, 5),
    )
)


@given(EVENTS)
def test_table_is_what_was_seen(events: list[tuple[str, int, int, float]]) -> None:
    """Beside a table without limits: an address is found where it was seen last, or not at all."""
    age, most = 8.0, 3
    table = MacTable(age=age, most=most)
    seen: dict[bytes, tuple[int, float]] = {}
    since: dict[bytes, set[bytes]] = {}  # what was learned of the same port after an address
    now = 0.0
    for what, number, port, later in events:
        now += later
        if what == "learn":
            table.learn(address(number), port, now)
            seen[address(number)] = (port, now)
            since[address(number)] = set()
            for each, (at, _) in seen.items():
                if at == port and each != address(number):
                    since[each].add(address(number))
        else:
            table.forget(port)
            seen = {each: (at, when) for each, (at, when) in seen.items() if at != port}
        for each in map(address, range(10)):
            found = table.find(each, now)
            port_of, when = seen.get(each, (None, 0.0))
            if port_of is not None and now - when <= age and len(since[each]) < most:
                assert found == port_of
            else:
                assert found in {None, port_of}
        entries = table.entries(now)
        assert [entry[:2] for entry in entries] == [
            (each, port) for each, port, _ in entries if table.find(each, now) == port
        ]
        assert len(entries) == len(table) <= 4 * most
