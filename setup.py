"""The programs of the package: pyproject.toml has all else."""

import ast
from pathlib import Path

from setuptools import setup

TABLE = Path(__file__).parent / "vhost_user/devices/__init__.py"


def device_names() -> list[str]:
    """Return the names in the table of devices, without importing it: it needs what is not installed yet."""
    for statement in ast.parse(TABLE.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "DEVICES":
            return list(ast.literal_eval(statement.value))
    raise SystemExit(f"{TABLE} has no table DEVICES")


PROGRAMS = [
    "ivshmem-server = ivshmem_server.program.server:main",
    "ivshmem-client = ivshmem_server.program.client:main",
    "vhost-user = vhost_user.program.main:main",
    *(f"vhost-user-{name} = vhost_user.program.main:{name}" for name in device_names()),
]

setup(entry_points={"console_scripts": PROGRAMS})
