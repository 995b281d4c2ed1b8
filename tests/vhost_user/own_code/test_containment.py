"""Containment: what passes, what does not, and what the log tells of it."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import TYPE_CHECKING

import pytest
import trio

from vhost_user import VirtioDevice
from vhost_user.devices.gpio import chip as gpio_chip
from vhost_user.devices.i2c import I2cChip, RegisterChip
from vhost_user.devices.net.ports import port as net_host
from vhost_user.own_code.containment import Containment, in_one_line, in_time

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("vhost_user.own")


class RefusedError(Exception):
    """What somebody's code may raise."""


@pytest.fixture
def own() -> Containment:
    return Containment(_log)


def fail(error: BaseException) -> None:
    raise error


def fail_elsewhere(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        StopIteration(),
        StopAsyncIteration(),
        RecursionError(),
        ExceptionGroup("some", [ValueError("no"), ExceptionGroup("more", [KeyError(1)])]),
    ],
)
def test_exception_ends_the_block_alone(
    own: Containment, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with own.code("the lamp", "it stays dark") as attempt:
        fail(error)
    assert attempt.failed
    assert attempt.refusal is None
    (record,) = caplog.records
    assert record.getMessage() == "the lamp failed: it stays dark. This is logged once."
    assert "in fail\n" in (record.exc_text or "")


def test_nothing_is_told_of_what_goes_well(own: Containment, caplog: pytest.LogCaptureFixture) -> None:
    with own.code("the lamp", "it stays dark") as attempt:
        pass
    assert not attempt.failed
    assert not caplog.records


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_what_is_no_exception_passes(own: Containment, error: BaseException) -> None:
    with pytest.raises(type(error)), own.code("the lamp", "it stays dark"):
        fail(error)


def test_what_is_no_exception_passes_from_a_group(own: Containment, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BaseExceptionGroup) as raised, own.code("the lamp", "it stays dark"):
        fail(BaseExceptionGroup("both", [ValueError("burnt out"), KeyboardInterrupt()]))
    assert [type(each) for each in raised.value.exceptions] == [KeyboardInterrupt]
    assert "burnt out" in caplog.text


async def test_cancellation_passes_beside_a_failure(
    own: Containment, caplog: pytest.LogCaptureFixture
) -> None:
    """Code that fails while it is cancelled does not spoil the end of its device."""

    async def clean_up() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("cannot clean up")

    with trio.CancelScope() as scope:
        with own.code("the lamp", "it stays dark"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(clean_up)
                nursery.start_soon(trio.sleep_forever)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        await trio.lowlevel.checkpoint()
        pytest.fail("the cancellation was swallowed")
    assert scope.cancelled_caught
    assert "cannot clean up" in caplog.text


@pytest.mark.parametrize(
    "raised", [RefusedError("not now"), ExceptionGroup("a nursery's", [RefusedError("not now")])]
)
def test_expected_exception_is_a_refusal(
    own: Containment, raised: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with own.code("the lamp", "it stays dark", expected=RefusedError) as attempt:
        fail(raised)
    assert attempt.failed
    assert attempt.refusal == "not now"
    assert not caplog.records


def test_traceback_is_logged_once_for_each_place_and_object(
    own: Containment, caplog: pytest.LogCaptureFixture
) -> None:
    ways: list[tuple[str, Callable[[BaseException], None], type[Exception]]] = [
        ("one lamp", fail, ValueError),
        ("another lamp", fail, ValueError),
        ("one lamp", fail_elsewhere, ValueError),
        ("one lamp", fail, KeyError),
    ]
    for number in range(3):
        for what, function, kind in ways:
            with own.code(what, "it stays dark"):
                function(kind(f"number {number}"))
    assert len(caplog.records) == len(ways)
    assert "number 0" in caplog.text
    assert "number 1" not in caplog.text


def test_ways_to_fail_without_end_do_not_fill_the_log(
    own: Containment, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        with own.code(f"lamp {number}", "it stays dark"):
            fail(ValueError("no"))
    assert 10 < len(caplog.records) < 200
    assert "no others are logged" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (I2cChip, "write"),
        (RegisterChip, "stop"),
        (net_host.NetPort, "send"),
        (gpio_chip.Chip, "reset"),
        (VirtioDevice, "read_config"),
    ],
)
def test_async_method_that_nobody_awaits_is_refused(base: type, name: str) -> None:
    """It would never run, and the guest be told that all is well."""

    async def method(self: object, *_: object) -> None:
        pass

    with pytest.raises(TypeError, match=rf"^Own\.{name}\(\) is async, but called without await"):
        type("Own", (base,), {name: method})


def test_methods_that_may_be_async() -> None:
    class Own(RegisterChip):
        async def run(self) -> None:
            pass

        async def set_register(self, register: int, value: int) -> None:  # type: ignore[override]
            pass

    assert Own().registers == {}


@pytest.mark.usefixtures("caplog")
def test_nothing_of_the_failure_is_kept(own: Containment) -> None:
    """Its frames may know the guest's memory, which has to go with the guest, also where records are kept."""

    class Lamp:
        pass

    def use(*, expected: bool) -> weakref.ref[Lamp]:
        lamp = Lamp()
        with own.code("the lamp", "it stays dark", expected=RefusedError if expected else ()):
            raise RefusedError("not now")
        return weakref.ref(lamp)

    gc.disable()
    try:
        assert use(expected=True)() is None
        assert use(expected=False)() is None
    finally:
        gc.enable()


async def test_what_takes_too_long_fails(
    own: Containment, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    with own.code("the lamp", "it stays dark") as attempt, in_time(3):
        await trio.sleep_forever()
    assert attempt.failed
    assert trio.current_time() == autojump_clock.current_time() > 2.9
    assert "TimeoutError: it has not returned within 3 s, and was cancelled" in caplog.text


def test_failure_in_one_line() -> None:
    with pytest.raises(ValueError, match="one line") as raised:
        fail(ValueError("one line\n  and another"))
    said = in_one_line(raised.value)
    assert said.startswith("ValueError: one line and another (")
    assert said.partition("(")[2].startswith(__file__)
    assert in_one_line(KeyError()) == "KeyError"
