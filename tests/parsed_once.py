"""What configs consist of is parsed and composed once in a process: tests read the same few hundred again and again."""

import copy
import pickle
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import IO, Any

import omegaconf.base
import omegaconf.omegaconf
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from diffusion_policy.installation import CONFIG


def parse_configs_once() -> None:
    """Keeps OmegaConf's parse trees, what YAML says, and configs of the shipped folder: all depend on text alone."""
    omegaconf.base.parse = lru_cache(maxsize=None)(omegaconf.base.parse)
    parsed: dict[str, Any] = {}

    def load(stream: str | IO[str], Loader: type[Any]) -> Any:  # noqa: N803 - as in yaml.load
        text = stream if isinstance(stream, str) else stream.read()
        if text not in parsed:  # OmegaConf's loader is another class each time, but does the same
            parsed[text] = yaml.load(text, Loader)
        return copy.deepcopy(parsed[text])

    omegaconf.omegaconf.yaml = SimpleNamespace(**{**vars(yaml), "load": load})
    _compose_once()


def _compose_once() -> None:
    """Keeps what Hydra composes from the shipped folder without another search path; each caller gets a copy."""
    composed: dict[tuple[Any, ...], bytes] = {}
    compose = ConfigLoaderImpl.load_configuration

    def load(self: ConfigLoaderImpl, config_name: str | None, overrides: Sequence[str], *rest: Any, **more: Any) -> Any:
        places = self.config_search_path.get_path()
        folders = {entry.path for entry in places if entry.provider not in ("hydra", "schema")}
        if folders != {str(CONFIG)} or any("searchpath" in override for override in overrides):
            return compose(self, config_name, overrides, *rest, **more)
        key = (config_name, *overrides, *rest, *more.items())
        if key not in composed:
            composed[key] = pickle.dumps(compose(self, config_name, overrides, *rest, **more))
        return pickle.loads(composed[key])

    ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]
