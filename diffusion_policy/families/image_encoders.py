"""Finds image encoders among named tensors of any program, and maps their tensors to this project's.

ResNets occur under two namings: torchvision and timm call the parts ``conv1``, ``bn1``, ``layer1`` to
``layer4``; robomimic, LeRobot and UMI put them into a Sequential, where they are 0, 1 and 4 to 7. BatchNorm is
recognized by its running statistics; the number of groups of a GroupNorm is not stored in any tensor (all of the code
bases named here use one group for 16 channels).
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffusion_policy.families.family import Shape, Shapes

# The part of each naming by its index in a Sequential.
PARTS: Mapping[str, str] = {
    "0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4",
}  # fmt: skip
SEQUENTIAL, TORCHVISION = "a Sequential", "torchvision or timm"
_STEMS = {"0.weight": SEQUENTIAL, "conv1.weight": TORCHVISION}
_BLOCKS = {
    ("basic", (2, 2, 2, 2)): "ResNet-18", ("basic", (3, 4, 6, 3)): "ResNet-34",
    ("bottleneck", (3, 4, 6, 3)): "ResNet-50", ("bottleneck", (3, 4, 23, 3)): "ResNet-101",
    ("basic", (2, 2, 2)): "ResNet-18 without its last stage",
    ("basic", (3, 4, 6)): "ResNet-34 without its last stage",
}  # fmt: skip
# Encoders that are not ResNets, by the end of the name of a tensor that each has.
_OTHERS: Mapping[str, str] = {
    "patch_embed.proj.weight": "a vision transformer (timm, DINO)",
    "embeddings.patch_embeddings.projection.weight": "a vision transformer (transformers)",
    "embeddings.patch_embedding.weight": "a vision transformer (CLIP, SigLIP)",
    "conv_stem.weight": "an EfficientNet or MobileNet (timm)",
    "stem.0.weight": "a ConvNeXt (timm)",
    "stem_0.weight": "a ConvNeXt (timm)",
    "features.0.0.weight": "a ConvNeXt, EfficientNet or MobileNet (torchvision)",
}
# Parts of names that do not say whose encoder it is.
_GENERIC = frozenset({
    "backbone", "nets", "net", "model", "models", "encoder", "trunk", "resnet", "visual", "module", "obs_encoder",
    "key_model_map", "obs_nets", "policy", "_orig_mod", "vision", "diffusion", "state_dict",
})  # fmt: skip


@dataclass(frozen=True)
class ImageEncoder:
    """An image encoder among named tensors.

    Attributes:
        prefix: prefix of all of its names, dot included; "" if they are at the top.
        network: "ResNet-18", or what it is instead.
        naming: `SEQUENTIAL` or `TORCHVISION`; "" if it is not a ResNet.
        norm: "GroupNorm" or "BatchNorm"; "" if it is not a ResNet.
        shapes: shapes of the trunk's tensors by their names in a Sequential; empty if it is not a ResNet.
    """

    prefix: str
    network: str
    naming: str
    norm: str
    shapes: Mapping[str, Shape]

    @property
    def name(self) -> str:
        """The prefix without the dot; "the whole file" if it is empty."""
        return self.prefix.rstrip(".") or "the whole file"

    @property
    def camera(self) -> str:
        """The last part of the prefix that names what it sees, such as `camera0_rgb`; else the whole prefix."""
        parts = [part for part in self.prefix.split(".") if part and part not in _GENERIC]
        return parts[-1] if parts else self.name

    @property
    def is_resnet(self) -> bool:
        """Whether its tensors can be named one by one."""
        return bool(self.naming)

    def own_name(self, name: str) -> str:
        """The full name of a tensor, in this encoder's naming, given the name in a Sequential."""
        part, _, rest = name.partition(".")
        return f"{self.prefix}{part if self.naming == SEQUENTIAL else PARTS[part]}.{rest}"

    def describe(self) -> str:
        """Network, norm, channels and naming in one phrase."""
        if not self.is_resnet:
            return self.network
        channels = self.shapes["0.weight"][1]
        return f"{self.network}, {self.norm}, {channels} channels, named as {self.naming}"

    def unlike(self, other: ImageEncoder) -> str:
        """Why this encoder's tensors cannot become those of `other`; "" if they can."""
        if not self.is_resnet or self.network != other.network:
            return f"it is {self.network}, but the policy here has {other.network}"
        if self.norm != other.norm:
            groups = str(self.norm == "GroupNorm").lower()
            return (
                f"it has {self.norm}, but the policy here has {other.norm}, which computes something else; a "
                "policy with "
                f"{self.norm} takes it: --set policy.obs_encoder_group_norm={groups}"
            )
        differing = [
            name for name in {**self.shapes, **other.shapes} if self.shapes.get(name) != other.shapes.get(name)
        ]
        if differing:
            name = differing[0]
            return f"{self.own_name(name)} is {self.shapes.get(name)}, but the policy here has {other.shapes.get(name)}"
        return ""


def image_encoders(shapes: Shapes) -> list[ImageEncoder]:
    """The image encoders among named shapes, in the order of the names.

    Args:
        shapes: by full name. An encoder that is registered twice, as robomimic does, is found once.
    """
    encoders = {encoder.prefix: encoder for encoder in _found(shapes)}
    twins = {
        prefix for prefix in encoders if first_name_of_twin(prefix) in encoders and first_name_of_twin(prefix) != prefix
    }
    return [encoder for prefix, encoder in encoders.items() if prefix not in twins]


def twin_prefix(prefix: str) -> str:
    """The second prefix under which robomimic registers the encoder; the same one if it does not."""
    return re.sub(r"\.backbone\.nets\.$", ".nets.0.nets.", prefix)


def first_name_of_twin(prefix: str) -> str:
    """Inverse of `twin_prefix`."""
    return re.sub(r"\.nets\.0\.nets\.$", ".backbone.nets.", prefix)


def _found(shapes: Shapes) -> Iterator[ImageEncoder]:
    ordered = sorted(shapes)
    for name, shape in shapes.items():
        for stem, naming in _STEMS.items():
            if _ends(name, stem) and len(shape) == 4:
                encoder = _resnet(shapes, ordered, name.removesuffix(stem), naming)
                if encoder is not None:
                    yield encoder
        for marker, network in _OTHERS.items():
            if _ends(name, marker) and len(shape) == 4:
                yield ImageEncoder(name.removesuffix(marker), network, "", "", {})


def _ends(name: str, tail: str) -> bool:
    return name == tail or name.endswith(f".{tail}")


def _resnet(shapes: Shapes, ordered: Sequence[str], prefix: str, naming: str) -> ImageEncoder | None:
    """The ResNet whose first convolution is at the prefix, or None."""
    parts = {(index if naming == SEQUENTIAL else part): index for index, part in PARTS.items()}
    own: dict[str, Shape] = {}
    for index in range(bisect.bisect_left(ordered, prefix), len(ordered)):
        name = ordered[index]
        if not name.startswith(prefix):
            break
        head, _, rest = name[len(prefix) :].partition(".")
        if head in parts and rest:
            own[f"{parts[head]}.{rest}"] = tuple(shapes[name])
    blocks = [{name.split(".")[1] for name in own if name.startswith(f"{stage}.")} for stage in "4567"]
    if "4.0.conv1.weight" not in own or not all(number.isdigit() for block in blocks for number in block):
        return None
    counts = tuple(len(block) for block in blocks if block)
    kind = "bottleneck" if "4.0.conv3.weight" in own else "basic"
    network = _BLOCKS.get((kind, counts), f"a ResNet of {kind} blocks {list(counts)}")
    norm = "BatchNorm" if "1.running_mean" in own else "GroupNorm"
    return ImageEncoder(prefix, network, naming, norm, own)
