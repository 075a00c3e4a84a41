"""The one error of this package."""

from __future__ import annotations

from typing import Literal

from diffusion_policy.spec import SpecError


class ImageError(SpecError):
    """An image is refused: says which, what was found, and what was expected.

    Attributes:
        code: "oversized" (more pixels than allowed, known before any memory is allocated) or "bad_image" (anything
            else).
    """

    def __init__(self, message: str, code: Literal["bad_image", "oversized"] = "bad_image") -> None:
        super().__init__(message)
        self.code = code
