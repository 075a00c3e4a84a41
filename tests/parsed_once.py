"""Interpolations of configs are parsed once in a process: the same few hundred stand in all that tests resolve."""

from functools import lru_cache

import omegaconf.base


def parse_interpolations_once() -> None:
    """Keeps OmegaConf's parse trees, which depend on the text alone and are only read."""
    omegaconf.base.parse = lru_cache(maxsize=None)(omegaconf.base.parse)
