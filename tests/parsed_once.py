"""Interpolations and files of configs are parsed once in a process: the same few hundred are in all that tests read."""

import copy
from functools import lru_cache
from types import SimpleNamespace
from typing import IO, Any

import omegaconf.base
import omegaconf.omegaconf
import yaml


def parse_configs_once() -> None:
    """Keeps OmegaConf's parse trees, and what YAML says: both depend on the text alone."""
    omegaconf.base.parse = lru_cache(maxsize=None)(omegaconf.base.parse)
    parsed: dict[str, Any] = {}

    def load(stream: str | IO[str], Loader: type[Any]) -> Any:  # noqa: N803 - as in yaml.load
        text = stream if isinstance(stream, str) else stream.read()
        if text not in parsed:  # OmegaConf's loader is another class each time, but does the same
            parsed[text] = yaml.load(text, Loader)
        return copy.deepcopy(parsed[text])

    omegaconf.omegaconf.yaml = SimpleNamespace(**{**vars(yaml), "load": load})
