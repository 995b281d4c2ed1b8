"""What can be simulated: calls with their arguments checked, parts, events."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.vhost_user.simulation.lamp import House, Lamp
from vhost_user import CallError, Simulation, call
from vhost_user.simulation.simulation import EVENT_BACKLOG, Event, EventsLostError


async def echo(**arguments: object) -> Any:
    return await Lamp().find_call("echo").make(arguments)


async def test_calls_are_the_marked_methods() -> None:
    calls = Lamp().calls()
    assert set(calls) == {"burn_out", "echo", "fail", "state", "switch"}
    assert calls["switch"].help == "Switch it on or off."
    assert calls["switch"].arguments == {"lit": "bool", "brightness": "int = 100"}
    with pytest.raises(CallError, match="no call 'secret'; there are burn_out, echo, fail, state, switch"):
        Lamp().find_call("secret")


async def test_a_call_does_what_the_method_does() -> None:
    lamp = Lamp()
    assert await lamp.find_call("switch").make({"lit": True}) is None
    assert lamp.is_on
    assert await lamp.find_call("state").make({}) == {"on": True}
    with pytest.raises(CallError, match=r"^0 is no percentage from 1 to 100$"):
        await lamp.find_call("switch").make({"lit": False, "brightness": 0})
    assert lamp.is_on


@pytest.mark.parametrize(
    ("given", "place", "wanted"),
    [
        ({"number": 5}, 0, 5),
        ({"number": None}, 0, None),
        ({"real": 3}, 1, 3.0),
        ({"real": 2.5}, 1, 2.5),
        ({"text": "0x48"}, 2, "0x48"),
        ({"raw": "00ff 10"}, 3, b"\x00\xff\x10"),
        ({"many": [1, 2]}, 4, [1, 2]),
        ({"mode": 3}, 5, 3),
        ({"colour": "warm white"}, 6, "warm white"),
        ({"pause": 2}, 7, 2.0),
        ({"pause": "20ms"}, 7, 0.02),
    ],
)
async def test_arguments_are_what_json_says(given: dict[str, object], place: int, wanted: object) -> None:
    got = (await echo(**given))[place]
    assert got == wanted
    assert type(got) is type((await echo())[place]) or isinstance(got, type(wanted))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"number": "5"}, "echo: number is '5'; it has to be int or null"),
        ({"number": True}, "number is True"),
        ({"number": 1.0}, "number is 1.0"),
        ({"real": "warm"}, "real is 'warm'; it has to be float"),
        ({"text": 5}, "text is 5; it has to be str"),
        ({"raw": "0g"}, "raw is '0g'; it has to be bytes as hexadecimal digits"),
        ({"raw": [1]}, "raw is"),
        ({"many": [1, "2"]}, "many is"),
        ({"many": 1}, "many is 1"),
        ({"mode": "slow"}, "mode is 'slow'; it has to be 'fast' or 3"),
        ({"colour": "blue"}, "colour is 'blue'; it has to be 'red' or 'warm white'"),
        ({"pause": "20"}, "pause is '20'; it has to be seconds or a time such as 20ms"),
        ({"size": 1}, "echo has no argument 'size'; it takes \\(number: int or null = None, real: float"),
    ],
)
async def test_wrong_arguments_are_named(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(CallError, match=complaint):
        await echo(**given)


async def test_a_missing_argument_is_named() -> None:
    with pytest.raises(CallError, match="switch: missing a required argument: 'lit'; it takes \\(lit: bool"):
        await Lamp().find_call("switch").make({})


def test_parts_are_found_by_their_paths() -> None:
    house = House()
    assert house.find("") is house
    assert house.find("hall") is house.parts["hall"]
    assert house.find("attic/left") is house.parts["attic"].parts["left"]
    with pytest.raises(CallError, match="no part 'cellar'; there are attic, hall"):
        house.find("cellar")
    with pytest.raises(CallError, match="no part 'bulb'; there are none"):
        house.find("hall/bulb")


@pytest.mark.parametrize("name", ["", "a/b", "hall"])
def test_names_that_no_part_can_have(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' cannot be the name"):
        House().add_part(name, Simulation())


async def test_events_come_with_the_part_they_are_of() -> None:
    house = House()
    left, hall = house.find("attic/left"), house.find("hall")
    assert isinstance(left, Lamp)
    assert isinstance(hall, Lamp)
    with house.events() as everywhere, left.events() as here:
        hall.switch(lit=True)
        left.switch(lit=False, brightness=7)
        house.remove_part("hall")
        hall.switch(lit=False)
        house.flood(1)
        with trio.fail_after(60):
            got = [await anext(everywhere) for _ in range(3)]
            assert got == [
                Event("light", {"lit": True, "brightness": 100}, "hall"),
                Event("light", {"lit": False, "brightness": 7}, "attic/left"),
                Event("drop", {"number": 0}),
            ]
            assert await anext(here) == Event("light", {"lit": False, "brightness": 7})


async def test_events_are_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    house = House()
    with house.events() as events:
        with trio.move_on_after(5) as patience:
            await anext(events)
        assert patience.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, events)
            await trio.testing.wait_all_tasks_blocked()
            house.flood(1)


async def test_who_is_too_slow_is_told_what_it_lost() -> None:
    house = House()
    with house.events() as events:
        house.flood(EVENT_BACKLOG + 1)
        for number in range(EVENT_BACKLOG):
            assert (await anext(events)).data == {"number": number}
        with pytest.raises(EventsLostError, match="more than 4096 events were not fetched"):
            await anext(events)


def test_nobody_has_to_listen() -> None:
    house = House()
    with house.events():
        pass
    house.flood(EVENT_BACKLOG * 2)


def test_a_call_of_a_base_class_is_one_too() -> None:
    class Chandelier(Lamp):
        @call
        def swing(self) -> None:
            """Swing."""

    assert {"swing", "switch"} <= set(Chandelier().calls())


def test_no_argument_takes_the_name_of_the_part() -> None:
    with pytest.raises(TypeError, match="switch: no argument of a call can be called 'on'"):

        @call
        def switch(self: object, on: bool) -> None: ...
