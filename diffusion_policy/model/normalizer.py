"""Linear normalization per key and dimension: ``normalized = x * scale + offset``.

The numbers are parameters without gradient, so they travel with the weights, and a policy answers in real units without
its dataset. Names in files, in alphabetical order: ``params_dict.<key>.{offset,scale}`` and
``params_dict.<key>.input_stats.{max,mean,min,std}``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_policy.model import ModelError

STATISTICS = frozenset({"min", "max", "mean", "std"})
Statistics = Mapping[str, Tensor | np.ndarray | float]


class SingleFieldLinearNormalizer(nn.Module):
    """The scale and offset of one key: a view of its entry in :class:`LinearNormalizer`.

    Attributes:
        params_dict: "scale" and "offset", (D,), or (1,) shared by all dimensions, and "input_stats": min, max, mean and
            std of the data they were fitted to, in the data's units.
    """

    def __init__(self, params_dict: nn.ParameterDict) -> None:
        super().__init__()
        self.params_dict = params_dict

    @classmethod
    def create_fit(
        cls,
        data: Tensor | np.ndarray,
        mode: Literal["limits", "gaussian"] = "limits",
        output_min: float = -1.0,
        output_max: float = 1.0,
        range_eps: float = 1e-4,
    ) -> SingleFieldLinearNormalizer:
        """Fit to data (..., D).

        "limits" maps [min, max] of each dimension to [output_min, output_max]; a dimension whose range is below
        ``range_eps`` is not stretched: scale 1, centered in the output range. "gaussian" maps to mean 0 and deviation
        1, with the same exception.

        Raises:
            ModelError: no data, or data that is not finite.
        """
        values = torch.as_tensor(data, dtype=torch.float32)
        values = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
        if len(values) == 0 or not values.isfinite().all():
            raise ModelError(f"a normalizer needs finite data; got {len(values)} rows, or NaN or infinity")
        stats = {
            "min": values.amin(0),
            "max": values.amax(0),
            "mean": values.mean(0),
            "std": values.std(0, correction=min(1, len(values) - 1)),
        }
        if mode == "limits":
            spread, low = stats["max"] - stats["min"], stats["min"]
            flat = spread < range_eps
            scale = (output_max - output_min) / torch.where(flat, output_max - output_min, spread)
            offset = torch.where(flat, (output_max + output_min) / 2 - low, output_min - scale * low)
        elif mode == "gaussian":
            scale = 1 / torch.where(stats["std"] < range_eps, 1.0, stats["std"])
            offset = -stats["mean"] * scale
        else:
            raise ModelError(f"normalizer mode is {mode!r}; expected 'limits' or 'gaussian'")
        return cls.create_manual(scale, offset, stats)

    @classmethod
    def create_manual(
        cls, scale: Tensor | np.ndarray, offset: Tensor | np.ndarray, input_stats_dict: Statistics
    ) -> SingleFieldLinearNormalizer:
        """From given numbers: scale and offset (D,), statistics "min", "max", "mean" and "std" of the same shape.

        Raises:
            ModelError: shapes differ or a statistic is missing.
        """
        if set(input_stats_dict) != STATISTICS:
            raise ModelError(f"input statistics are {sorted(input_stats_dict)}; expected min, max, mean and std")
        numbers = {
            name: _constant(value) for name, value in {"offset": offset, "scale": scale, **input_stats_dict}.items()
        }
        shapes = {name: tuple(number.shape) for name, number in numbers.items()}
        if len(set(shapes.values())) != 1 or len(shapes["scale"]) != 1:
            raise ModelError(f"a normalizer's numbers must be vectors of one shape; got {shapes}")
        return cls(_field(numbers))

    @classmethod
    def create_identity(cls) -> SingleFieldLinearNormalizer:
        """The identity (scale 1, offset 0), for data that is already in [-1, 1]."""
        one, zero = torch.ones(1), torch.zeros(1)
        return cls.create_manual(one, zero, {"min": -one, "max": one, "mean": zero, "std": one})

    def normalize(self, x: Tensor | np.ndarray) -> Tensor:
        """Data units -> normalized; (..., D) or, with one scale for all, any shape."""
        x = self._checked(x)
        return x * self.params_dict["scale"] + self.params_dict["offset"]

    def unnormalize(self, x: Tensor | np.ndarray) -> Tensor:
        """Normalized -> data units."""
        x = self._checked(x)
        return (x - self.params_dict["offset"]) / self.params_dict["scale"]

    def get_input_stats(self) -> nn.ParameterDict:
        """Statistics of the data that it was fitted to: "min", "max", "mean", "std"."""
        return self.params_dict["input_stats"]

    def _checked(self, x: Tensor | np.ndarray) -> Tensor:
        scale = self.params_dict["scale"]
        x = torch.as_tensor(x, device=scale.device, dtype=scale.dtype)
        if scale.numel() not in (1, x.shape[-1] if x.ndim else 1):
            raise ModelError(f"data has shape {tuple(x.shape)}, but its normalizer holds {scale.numel()} dimensions")
        return x


class LinearNormalizer(nn.Module):
    """Normalizers by key; empty until fitted, filled key by key, or loaded.

    Loading a state_dict replaces all entries with the file's, whatever their number and widths.
    """

    def __init__(self) -> None:
        super().__init__()
        self.params_dict = nn.ParameterDict()

    def fit(self, data: Mapping[str, Tensor | np.ndarray], mode: Literal["limits", "gaussian"] = "limits") -> None:
        """Fit every key of ``data``, each (..., D); see :meth:`SingleFieldLinearNormalizer.create_fit`."""
        for key, values in data.items():
            self[key] = SingleFieldLinearNormalizer.create_fit(values, mode=mode)

    def __getitem__(self, key: str) -> SingleFieldLinearNormalizer:
        if key not in self.params_dict:
            known = sorted(self.params_dict)
            hint = f"it knows {known}" if known else "it is empty: call set_normalizer, or load a checkpoint"
            raise ModelError(f"the normalizer has no entry {key!r}; {hint}")
        return SingleFieldLinearNormalizer(self.params_dict[key])

    def __setitem__(self, key: str, value: SingleFieldLinearNormalizer) -> None:
        self.params_dict = _ordered({**dict(self.params_dict.items()), key: value.params_dict})

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self.params_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.params_dict)

    def normalize(self, x: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
        """Data units -> normalized, for every key of ``x``; ModelError names a key that has no entry."""
        return {key: self[key].normalize(value) for key, value in x.items()}

    def unnormalize(self, x: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
        """Normalized -> data units, for every key of ``x``."""
        return {key: self[key].unnormalize(value) for key, value in x.items()}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Allocate the file's entries; torch then loads them like any other parameter."""
        start = f"{prefix}params_dict."
        entries: dict[str, dict[str, Tensor]] = {}
        for name, value in state_dict.items():
            if name.startswith(start):
                key, _, number = name.removeprefix(start).partition(".")
                entries.setdefault(key, {})[number.removeprefix("input_stats.")] = value
        if entries:
            # A number that the file lacks is allocated all the same, so that torch reports it as missing.
            names, nothing = STATISTICS | {"offset", "scale"}, torch.empty(0)
            fields = {
                key: {name: _constant(tensors.get(name, nothing)) for name in names} for key, tensors in entries.items()
            }
            self.params_dict = _ordered({key: _field(numbers) for key, numbers in fields.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def get_image_range_normalizer() -> SingleFieldLinearNormalizer:
    """Images in [0, 1] -> [-1, 1]; the statistics are those of a uniform distribution."""
    stats = {"min": 0.0, "max": 1.0, "mean": 0.5, "std": math.sqrt(1 / 12)}
    return SingleFieldLinearNormalizer.create_manual(
        torch.tensor([2.0]), torch.tensor([-1.0]), {name: torch.tensor([value]) for name, value in stats.items()}
    )


def _constant(value: Tensor | np.ndarray | float) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(value, dtype=torch.float32).detach().clone(), requires_grad=False)


def _ordered(entries: Mapping[str, nn.Module] | Mapping[str, nn.Parameter]) -> nn.ParameterDict:
    """A ParameterDict in alphabetical order, as in files; built one by one, since only some torch versions sort."""
    result = nn.ParameterDict()
    for name in sorted(entries):
        result[name] = entries[name]
    return result


def _field(numbers: Mapping[str, nn.Parameter]) -> nn.ParameterDict:
    """The entry of one key: offset and scale, and the statistics one level down."""
    result = _ordered({name: value for name, value in numbers.items() if name not in STATISTICS})
    result["input_stats"] = _ordered({name: value for name, value in numbers.items() if name in STATISTICS})
    return result
