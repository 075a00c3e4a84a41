"""A module that knows its device, even before it has weights.

Files hold an empty parameter, ``_dummy_variable``, for this; it stays, since names are a contract.
"""

import torch
from torch import nn


class PlacedModule(nn.Module):
    """Base of modules that create tensors: provides ``device`` and ``dtype``.

    ``_dummy_variable`` takes no gradient: a parameter that the loss never reaches stalls distributed training.
    """

    def __init__(self) -> None:
        super().__init__()
        self._dummy_variable = nn.Parameter(torch.empty(0), requires_grad=False)

    @property
    def device(self) -> torch.device:
        """Where the module's tensors are."""
        return self._dummy_variable.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the module's tensors."""
        return self._dummy_variable.dtype
