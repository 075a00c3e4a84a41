"""The noise schedulers of diffusers, loaded without unused dependencies, or built with another's noise levels.

The first import of diffusers would load torch's compiler, for a decorator of its models, which takes half of a
command's startup time. diffusers works without the compiler, so it is hidden while diffusers is imported.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_COMPILER = "torch._dynamo"


@contextmanager
def _without_the_compiler() -> Iterator[None]:
    """In this block the compiler cannot be imported, unless it already has been."""
    if _COMPILER in sys.modules:
        yield
        return
    sys.modules[_COMPILER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_COMPILER]


with _without_the_compiler():
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

__all__ = ["DDIMScheduler", "DDPMScheduler", "scheduler_class", "with_noise_levels_of"]


def scheduler_class(path: str) -> type[Any]:
    """The diffusers class with that path, as in `_target_`."""
    module, _, name = path.rpartition(".")
    result: type[Any] = getattr(importlib.import_module(module), name)
    return result


def with_noise_levels_of(trained: Any, kind: type[Any]) -> Any:
    """A scheduler of that class with another's options; those that it does not have stay in its config.

    Like the class's own `from_config`, which however loads every scheduler of diffusers to compare their options.
    """
    known = inspect.signature(kind.__init__).parameters
    own = ("_class_name", "_use_default_values", *trained.config.get("_use_default_values", []))
    options = {name: value for name, value in trained.config.items() if name not in own}
    scheduler = kind(**{name: value for name, value in options.items() if name in known})
    scheduler.register_to_config(**{name: value for name, value in options.items() if name not in known})
    return scheduler
