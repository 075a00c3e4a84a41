"""Python runs this at startup if a test puts this folder on PYTHONPATH: it sends Ctrl-C once the process is at work.

INTERRUPT_AT=MODULE:FUNCTION[:N], or MODULE:CLASS.METHOD[:N]: SIGINT at its N-th call (the first by default), to all
processes of the terminal's foreground group: the one that the test started, in its own session.
"""

import functools
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

MODULE, FUNCTION, NUMBER = [*os.environ["INTERRUPT_AT"].split(":"), "1"][:3]


def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(NUMBER):
            for pid in os.environ.get("INTERRUPTED", str(-os.getsid(0))).split():
                os.kill(int(pid), signal.SIGINT)
        return function(*arguments, **options)

    return wrapped


def plant(module: ModuleType) -> None:
    *holders, name = FUNCTION.split(".")
    holder: Any = functools.reduce(getattr, holders, module)
    setattr(holder, name, interrupted(getattr(holder, name)))


class Finder:
    """Installs the interruption once the module has been imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_plant(module: ModuleType) -> None:
            execute(module)
            plant(module)

        spec.loader.exec_module = execute_and_plant  # type: ignore[method-assign]
        return spec


if MODULE in sys.modules:
    plant(sys.modules[MODULE])
else:
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
