"""Classes that a command line names as MODULE:CLASS: devices and chips of users."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError
from vhost_user.own_code.containment import in_one_line

if TYPE_CHECKING:
    from collections.abc import Iterator


def load_class(where: str, kind: str) -> object:
    """Return what MODULE:CLASS names, which need not be a class; None where the module has no such name.

    `kind` is a word for messages, such as "device". Raises UserError where the name is malformed, and
    where the module is missing or cannot be imported, whatever it raises: also SystemExit.
    """
    module_name, _, class_name = where.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        example = f"package.module:My{kind.capitalize()}"
        raise UserError(f"'{where}' names no {kind}; give MODULE:CLASS, as in {example}")
    with code_of_others(f"cannot import {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"cannot import {module_name}: {said}; is it installed, or in PYTHONPATH?"
            ) from error
    return getattr(module, class_name, None)


@contextmanager
def code_of_others(what: str) -> Iterator[None]:
    """Raise a UserError of one line, "`what`: ...", for whatever code that is not ours raises in a block.

    This holds for SystemExit, too: a module may be a script that ends in sys.exit(). UserError passes,
    and so does KeyboardInterrupt, which is the user's.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{what}: {in_one_line(error)}") from error
