"""A method as a call with arguments from JSON, checked against its annotations."""

from __future__ import annotations

import contextlib
import inspect
import types
import typing
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from protocol.program.units import Seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class CallError(ValueError):
    """A call was refused; the text is one line that says why, and what to do."""


class Call:
    """A method of a simulation that takes its arguments by name, as JSON has them."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.name: str = method.__name__
        self._hints = typing.get_type_hints(method, include_extras=True)
        self._parameters = inspect.signature(method).parameters

    @property
    def help(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self._method) or "").partition("\n")[0]

    @property
    def arguments(self) -> dict[str, str]:
        """The arguments by name, with their types and defaults, in words."""
        return {name: self._describe(parameter) for name, parameter in self._parameters.items()}

    async def make(self, arguments: Mapping[str, object]) -> object:
        """Call with `arguments`; return the result. Raises CallError for wrong ones, or as it does."""
        given = {name: self._convert(name, value) for name, value in arguments.items()}
        try:
            inspect.signature(self._method).bind(**given)
        except TypeError as error:
            raise CallError(f"{self.name}: {error}; it takes ({self._signature()})") from None
        result = self._method(**given)
        return await result if inspect.isawaitable(result) else result

    def _convert(self, name: str, value: object) -> object:
        if name not in self._parameters:
            raise CallError(f"{self.name} has no argument '{name}'; it takes ({self._signature()})")
        try:
            return _from_json(value, self._hints[name])
        except (TypeError, ValueError):
            wanted = self.arguments[name].partition(" = ")[0].replace("bytes", "bytes as hexadecimal digits")
            raise CallError(f"{self.name}: {name} is {value!r}; it has to be {wanted}") from None

    def _describe(self, parameter: inspect.Parameter) -> str:
        text = _name(self._hints[parameter.name])
        return text if parameter.default is parameter.empty else f"{text} = {parameter.default!r}"

    def _signature(self) -> str:
        return ", ".join(f"{name}: {text}" for name, text in self.arguments.items())


_NAMES: dict[Any, str] = {
    types.NoneType: "null",
    bytes: "bytes as hexadecimal digits",
    Seconds: "seconds or a time such as 20ms",
}
"""What types are called that JSON has otherwise."""


def _name(hint: Any) -> str:
    """Return what an annotation is called."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " or ".join(_name(choice) for choice in typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(repr(member.value) for member in hint)
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _from_json(value: object, hint: Any) -> object:
    """Return `value` as the annotation has it. Raises TypeError or ValueError where it cannot be."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        value = _first_that_fits(value, parts)
    elif origin is Literal:
        value = parts[parts.index(value)]  # raises ValueError for none of them
    elif origin is list and isinstance(value, list):
        value = [_from_json(item, parts[0]) for item in value]
    elif hint is bytes and isinstance(value, str):
        value = bytes.fromhex(value)
    elif origin is Annotated:
        base, parse = parts
        value = parse(value) if isinstance(value, str) else _from_json(value, base)
    elif hint is float and type(value) is int:
        value = float(value)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        value = hint(value)
    elif type(value) is not hint:
        raise TypeError
    return value


def _first_that_fits(value: object, hints: tuple[Any, ...]) -> object:
    for hint in hints:
        with contextlib.suppress(TypeError, ValueError):
            return _from_json(value, hint)
    raise TypeError
