"""What happens to camera images between normalization and the network: crop and color jitter, on the images' device.

Legend of shapes: N images (batch times observation steps), C channels, H W image size, h w crop size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from diffusion_policy.model import ModelError

# Luma weights of ITU-R BT.601, which the common image libraries use for gray.
_LUMA = (0.2989, 0.587, 0.114)


class CropRandomizer(nn.Module):
    """Cuts (N, C, H, W) to (N, C, h, w): at random positions in training, in the center otherwise.

    Args:
        size: h, w.
        center_in_eval: False: random positions outside training too, as in the reference unless ``eval_fixed_crop`` is
            set.
    """

    def __init__(self, size: tuple[int, int], *, center_in_eval: bool) -> None:
        super().__init__()
        self.size = size
        self.center_in_eval = center_in_eval

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Crop; ``generator`` draws the positions, one per image."""
        if self.training or not self.center_in_eval:
            return self._random(images, generator)
        (height, width), (h, w) = images.shape[-2:], self.size
        top, left = round((height - h) / 2), round((width - w) / 2)
        return images[..., top : top + h, left : left + w]

    def _random(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Crop by gathering, so that no position has to be copied to the host."""
        n, (height, width), (h, w), device = len(images), images.shape[-2:], self.size, images.device
        # The generator may be on another device than the images.
        drawn_on = generator.device if generator is not None else device
        top = torch.randint(height - h + 1, (n, 1), generator=generator, device=drawn_on).to(device)
        left = torch.randint(width - w + 1, (n, 1), generator=generator, device=drawn_on).to(device)
        rows = (top + torch.arange(h, device=device))[:, :, None]  # (N, h, 1)
        columns = (left + torch.arange(w, device=device))[:, None, :]  # (N, 1, w)
        picked = images[torch.arange(n, device=device)[:, None, None], :, rows, columns]  # (N, h, w, C)
        return picked.permute(0, 3, 1, 2)


class ColorJitter(nn.Module):
    """Random brightness, contrast, saturation and hue of RGB images in [-1, 1], in training only.

    Each image draws its own strengths; the order of the four changes is drawn once per call.

    Args:
        strengths: "brightness", "contrast", "saturation": factors are uniform in [1 - s, 1 + s], s >= 0; "hue": the
            shift is uniform in [-s, s] turns, s <= 0.5. Absent or 0: unchanged. "p": share of the images whose colors
            are changed, 1 by default.

    Raises:
        ModelError: another key, or a number out of range.
    """

    def __init__(self, strengths: Mapping[str, float]) -> None:
        super().__init__()
        limits = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5, "p": 1.0}
        for name, strength in strengths.items():
            if name not in limits:
                raise ModelError(f"color_jitter has no setting {name!r}; expected {', '.join(limits)}")
            if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= limits[name]:
                raise ModelError(f"color_jitter.{name} is {strength}; expected 0 to {limits[name]}")
        self.p = float(strengths.get("p", 1.0))
        self.strengths = {name: float(strength) for name, strength in strengths.items() if strength > 0 and name != "p"}

    def forward(self, images: Tensor) -> Tensor:
        """Change the colors of (N, 3, h, w)."""
        if not self.training or not self.strengths or self.p == 0:
            return images
        changes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "brightness": lambda rgb, factor: (rgb * factor).clamp(0, 1),
            "contrast": lambda rgb, factor: _blend(rgb, _gray(rgb).mean((2, 3), keepdim=True), factor),
            "saturation": lambda rgb, factor: _blend(rgb, _gray(rgb), factor),
            "hue": shift_hue,
        }
        names = list(self.strengths)
        rgb = (images + 1) / 2
        for index in torch.randperm(len(names)).tolist():
            name = names[index]
            draw = (2 * torch.rand(len(rgb), 1, 1, 1, device=rgb.device, dtype=rgb.dtype) - 1) * self.strengths[name]
            rgb = changes[name](rgb, draw if name == "hue" else 1 + draw)
        changed = rgb * 2 - 1
        if self.p == 1:
            return changed
        chosen = torch.rand(len(rgb), 1, 1, 1, device=rgb.device) < self.p
        return torch.where(chosen, changed, images)

    def extra_repr(self) -> str:
        """The strengths, and the share of images if it is below 1, for the printed model."""
        strengths = self.strengths if self.p == 1 else {**self.strengths, "p": self.p}
        return ", ".join(f"{name}={number}" for name, number in strengths.items())


def shift_hue(rgb: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of (N, 3, h, w) in [0, 1] by ``turns`` (N, 1, 1, 1) in HSV space; value and saturation stay."""
    red, green, blue = rgb.unbind(1)
    value = rgb.amax(1)
    chroma = value - rgb.amin(1)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sector = sector + 6 * turns[:, 0]
    # HSV to RGB without branches: the channel falls by the chroma over the sectors where it is dim.
    channels = []
    for start in (5, 3, 1):
        k = (start + sector) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _gray(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def _blend(rgb: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + factor * (rgb - other)).clamp(0, 1)
