"""Observation encoder: camera images and states -> one feature vector per step.

    rgb key      (N, 3, H, W) -> crop -> jitter -> ResNet-18 -> 1x1 conv -> spatial softmax -> Linear -> ReLU  (N, 64)
    low_dim key  (N, D) -------------------------------------------------------------------------------------  (N, D)
                                                         concatenated in the order of shape_meta.obs:          (N, Do)

Input is normalized: images in [-1, 1]. The network is written on torch alone; its parameter names, including those that
name a tensor twice, are those of existing files.

Legend of shapes: N batch times observation steps, K = 32 keypoints, h w size of the feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy.model import ModelError
from diffusion_policy.model.cpu.convolution import Convolution
from diffusion_policy.model.cpu.group_norm import GroupNorm, normalize, normalize_and_pool
from diffusion_policy.model.image_augmentation import ColorJitter, CropRandomizer
from diffusion_policy.spec import StepSpec

KEYPOINTS = 32
IMAGE_FEATURES = 64
WIDTH = 64  # channels of ResNet-18's first stage
STRIDE = 32  # five layers of stride two
ACTIVATIONS = ("relu", "none")  # final activation of image features; the first is the reference's

Norm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Residual block of ResNet-18: two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left)."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Convolution(in_channels, channels, 3, stride, padding=1)
        self.bn1 = norm(channels)
        self.conv2 = Convolution(channels, channels, 3, padding=1)
        self.bn2 = norm(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(Convolution(in_channels, channels, 1, stride), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))."""
        shortcut = x
        if self.downsample is not None:
            convolution, norm = self.downsample
            shortcut = normalize(norm, convolution(x), rectify=False)
        x = normalize(self.bn1, self.conv1(x))
        return normalize(self.bn2, self.conv2(x), shortcut)


class ResNet18Conv(nn.Module):
    """The convolutions of ResNet-18: (N, 3, H, W) -> (N, 8 * width, ceil(H/stride), ceil(W/stride)).

    ``nets`` lists the children of torchvision's model in order: 0 conv1, 1 bn1, 2 relu, 3 maxpool, 4-7 stages. The stem
    has stride 4, each stage after the first 2; with ``stride`` 16 or 8 the last one or two stages keep their size.
    """

    def __init__(self, norm: Norm, width: int = WIDTH, stride: int = STRIDE) -> None:
        super().__init__()
        widths = (width, width, 2 * width, 4 * width, 8 * width)
        strides = (1, *(2 if stride >= 4 * 2**stage else 1 for stage in (1, 2, 3)))
        stages = [
            nn.Sequential(BasicBlock(before, after, step, norm), BasicBlock(after, after, 1, norm))
            for (before, after), step in zip(pairwise(widths), strides, strict=True)
        ]
        stem = [
            Convolution(3, width, 7, stride=2, padding=3),
            norm(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        self.nets = nn.Sequential(*stem, *stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Feature map of the images."""
        convolution, norm, _, pool, *stages = self.nets
        images = normalize_and_pool(norm, pool, convolution(images))
        for stage in stages:
            images = stage(images)
        return images


class SpatialSoftmax(nn.Module):
    """Expected image position of each of K keypoints, in [-1, 1] (Finn et al. 2016).

    ``pos_x`` and ``pos_y`` (1, h*w) depend only on the size of the feature map, and so on the crop.
    """

    def __init__(self, in_channels: int, feature_size: tuple[int, int], keypoints: int = KEYPOINTS) -> None:
        super().__init__()
        h, w = feature_size
        grid_y, grid_x = torch.meshgrid(
            torch.linspace(-1, 1, h, dtype=torch.float64), torch.linspace(-1, 1, w, dtype=torch.float64), indexing="ij"
        )
        self.temperature: Tensor
        self.pos_x: Tensor
        self.pos_y: Tensor
        self.register_buffer("temperature", torch.ones(1))
        self.register_buffer("pos_x", grid_x.reshape(1, h * w).float())
        self.register_buffer("pos_y", grid_y.reshape(1, h * w).float())
        self.nets = nn.Conv2d(in_channels, keypoints, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, channels, h, w) -> (N, K, 2), x before y."""
        attention = torch.softmax(self.nets(features).flatten(2) / self.temperature, dim=-1)  # (N, K, h*w)
        positions = torch.stack((self.pos_x[0], self.pos_y[0]), dim=-1)  # (h*w, 2)
        return attention @ positions


class VisualCore(nn.Module):
    """From one camera's cropped images (N, 3, h, w) to (N, 64).

    Backbone and pool are registered twice, by name and in ``nets``: files hold each of their tensors under two names.
    """

    def __init__(self, image_size: tuple[int, int], norm: Norm, channels: int = WIDTH, stride: int = STRIDE) -> None:
        super().__init__()
        height, width = image_size
        self.backbone = ResNet18Conv(norm, channels, stride)
        self.pool = SpatialSoftmax(8 * channels, (-(-height // stride), -(-width // stride)))
        projection = nn.Linear(2 * KEYPOINTS, IMAGE_FEATURES)
        self.nets = nn.Sequential(self.backbone, self.pool, nn.Flatten(1), projection)

    def forward(self, images: Tensor) -> Tensor:
        """Features before the ReLU."""
        return self.nets(images)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, *reports: Any
    ) -> None:
        """Refuse a file in which the two names of one tensor disagree; otherwise the last one read would win."""
        errors: list[str] = reports[-1]
        for name, twin in ((f"{prefix}backbone.", f"{prefix}nets.0."), (f"{prefix}pool.", f"{prefix}nets.1.")):
            for key in [key for key in state_dict if key.startswith(name)]:
                other = twin + key.removeprefix(name)
                if other in state_dict and not _same(state_dict[key], state_dict[other]):
                    errors.append(f"{key} and {other} name one tensor, but the file has two values for it")
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *reports)


def _same(first: Tensor, second: Tensor) -> bool:
    if first.data_ptr() == second.data_ptr() and first.shape == second.shape:
        return True
    return torch.equal(first, second)


class ObsEncoder(nn.Module):
    """All observation keys of one step -> features (N, Do).

    Args:
        spec: the keys, in the order in which their features are concatenated.
        crop_shape: (h, w) of the crop, or None for whole images; cameras may differ in size.
        use_group_norm: GroupNorm instead of BatchNorm2d.
        eval_fixed_crop: center crop outside training (else random there too).
        color_jitter: strengths, see :class:`ColorJitter`; None: off.
        width: channels of the first stage, a multiple of 16; 64 is ResNet-18. The number of parameters grows with its
            square.
        stride: image pixels per cell of the last feature map, 32 (ResNet-18), 16 or 8.
        activation: "relu" of the image features, as in the reference, or "none". A feature that the ReLU sets to zero
            for every image gets no gradient and stays at zero; without the ReLU this cannot happen.

    Raises:
        ModelError: a crop larger than an image, a camera that is not RGB, or another width, stride or activation.
    """

    def __init__(
        self,
        spec: StepSpec,
        crop_shape: tuple[int, int] | None,
        *,
        use_group_norm: bool,
        eval_fixed_crop: bool,
        color_jitter: Mapping[str, float] | None = None,
        width: int = WIDTH,
        stride: int = STRIDE,
        activation: str = ACTIVATIONS[0],
    ) -> None:
        super().__init__()
        if width < 16 or width % 16:
            raise ModelError(f"encoder_width is {width}; expected a multiple of 16, the channels of one norm group")
        if stride not in (8, 16, 32):
            raise ModelError(f"encoder_stride is {stride}; expected 32 (ResNet-18), 16 or 8")
        if activation not in ACTIVATIONS:
            raise ModelError(f"encoder_activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        norm: Norm = GroupNorm if use_group_norm else nn.BatchNorm2d  # GroupNorm, since an EMA cannot average BatchNorm
        self.spec = spec
        self._rectifies = activation == "relu"
        self.crop = CropRandomizer(crop_shape, center_in_eval=eval_fixed_crop) if crop_shape else None
        self.color_jitter = ColorJitter(color_jitter) if color_jitter else None
        self.obs_nets = nn.ModuleDict()
        for field in spec.rgb:
            channels, *size = field.shape
            if channels != 3:
                raise ModelError(f"camera {field.key!r} has {channels} channels; the encoder reads RGB")
            if crop_shape and (crop_shape[0] > size[0] or crop_shape[1] > size[1]):
                raise ModelError(f"crop_shape {crop_shape} exceeds the images of {field.key!r}, {size[0]}x{size[1]}")
            self.obs_nets[field.key] = VisualCore(crop_shape or (size[0], size[1]), norm, width, stride)

    def output_shape(self) -> tuple[int]:
        """(Do,): 64 per camera plus the width of each low-dimensional key."""
        return (sum(IMAGE_FEATURES if field.kind == "rgb" else field.shape[0] for field in self.spec.obs),)

    def forward(self, obs: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Encode normalized observations: images (N, 3, H, W) in [-1, 1], states (N, D).

        ``generator`` draws the positions of random crops.

        Raises:
            ModelError: a key is missing or has another shape.
        """
        features = []
        for field in self.spec.obs:
            value = obs.get(field.key)
            if value is None or tuple(value.shape[1:]) != field.shape:
                problem = "is missing" if value is None else f"has shape {tuple(value.shape)}"
                raise ModelError(
                    f"observation {field.key!r} {problem}; expected (N, {', '.join(map(str, field.shape))})"
                )
            features.append(self._encode_images(field.key, value, generator) if field.kind == "rgb" else value)
        return torch.cat(features, dim=-1)

    def _encode_images(self, key: str, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.crop is not None:
            images = self.crop(images, generator)
        if self.color_jitter is not None:
            images = self.color_jitter(images)
        if self.training:  # channels innermost in memory: the fastest order for convolutions and their gradients
            images = images.contiguous(memory_format=torch.channels_last)
        return self.activate(self.obs_nets[key](images))

    def activate(self, features: Tensor) -> Tensor:
        """Image features (N, 64) as the denoiser gets them, from the output of :class:`VisualCore`."""
        return torch.relu(features) if self._rectifies else features
