"""What a policy of this project can take over from another program's file, and with which command; or why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_policy.adapt.foreign_statistics import PREFIX
from diffusion_policy.adapt.weights_of import Weights, weights_of
from diffusion_policy.commands import DEFAULT_CONFIG, command
from diffusion_policy.families.image_encoders import ImageEncoder, image_encoders
from diffusion_policy.families.lerobot_diffusion import read_config
from diffusion_policy.families.lerobot_statistics import PolicyStatistics
from diffusion_policy.tensor_file import TensorFile

NETWORK = "ResNet-18"
BATCH_NORM = "policy.obs_encoder_group_norm=false"


@dataclass(frozen=True)
class EncoderReport:
    """One image encoder of a file.

    Attributes:
        name: prefix of its tensor names.
        what: network, norm, channels and naming.
        reason: why no policy here can take it over; "" if one can.
        command: the command that plans it; "" if none can.
    """

    name: str
    what: str
    reason: str
    command: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"name": self.name, "what": self.what, "reason": self.reason, "command": self.command}

    def describe(self) -> str:
        """One sentence, and the command."""
        if self.reason:
            return f"{self.what}: not taken over, {self.reason}"
        return f"{self.what}: its trunk can be taken over: {self.command}"


@dataclass(frozen=True)
class CarryOver:
    """What a file holds, and what can be taken over from it.

    Attributes:
        container: the program that wrote the file, in words.
        weights: where live and averaged weights are, in words.
        encoders: its image encoders.
        statistics: statistics that rules can copy, in words; "" without any.
    """

    container: str
    weights: str
    encoders: tuple[EncoderReport, ...]
    statistics: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "container": self.container, "weights": self.weights, "statistics": self.statistics,
            "encoders": [encoder.to_json() for encoder in self.encoders],
        }  # fmt: skip

    def facts(self) -> list[tuple[str, str]]:
        """(title, text) of each line."""
        facts = [("written by", self.container), ("weights", self.weights)]
        facts.extend((f"encoder {encoder.name}", encoder.describe()) for encoder in self.encoders)
        if not self.encoders:
            facts.append(("encoder", "none that is known, so the rules image_encoder can take nothing over"))
        return [*facts, ("statistics", self.statistics)] if self.statistics else facts


def carry_over(file: TensorFile, statistics: PolicyStatistics) -> CarryOver:
    """What can be taken over from a file, judged by names and shapes only."""
    weights = weights_of(file)
    shapes = {name: file.tensors[path].shape for name, path in weights.live.items()}
    encoders = image_encoders(shapes)
    reports = tuple(_report(encoder, file, several=len(encoders) > 1) for encoder in encoders)
    return CarryOver(container_of(file, weights), weights.describe(), reports, _statistics(statistics))


def container_of(file: TensorFile, weights: Weights) -> str:
    """The program that wrote a file, by its entries."""
    tree: Mapping[Any, Any] = file.tree if isinstance(file.tree, Mapping) else {}
    if read_config(file.path if file.path.is_dir() else file.path.parent) is not None:
        return "LeRobot"
    if "pytorch-lightning_version" in tree:
        counted = [f"{name} {tree[name]}" for name in ("epoch", "global_step") if type(tree.get(name)) is int]
        return ", ".join([f"PyTorch Lightning {str(tree['pytorch-lightning_version'])[:20]}", *counted])
    if {"cfg", "state_dicts"} <= tree.keys():
        return "a workspace of diffusion_policy or UMI"
    if {"algo_name", "shape_metadata"} & tree.keys():
        return f"robomimic, algorithm {str(tree.get('algo_name', 'unknown'))[:20]}"
    if not weights.entry and weights.live and not weights.rest:
        return "nothing but weights"
    entries = ", ".join(str(key)[:40] for key in list(tree)[:8])
    return f"an unknown program, with the entries {entries}" if tree else f"a {type(file.tree).__name__} of tensors"


def _report(encoder: ImageEncoder, file: TensorFile, *, several: bool) -> EncoderReport:
    reason = ""
    if not encoder.is_resnet or encoder.network != NETWORK:
        reason = f"the policies here have a {NETWORK}"
    elif encoder.shapes["0.weight"][1] != 3:
        reason = f"it sees {encoder.shapes['0.weight'][1]} channels, the policies here 3"
    if reason:
        return EncoderReport(encoder.name, encoder.describe(), reason, "")
    rules = "image_encoder"
    if several:
        rules = f"{{rules: [{{encoder: '*', from: {encoder.name}}}, {{strip: '*'}}, {{drop: '*'}}, {{fresh: '*'}}]}}"
    norm = ["--set", BATCH_NORM] if encoder.norm == "BatchNorm" else []
    plan = command("adapt", "plan", file.path, "--target", DEFAULT_CONFIG, *norm, "--rules", rules)
    return EncoderReport(encoder.name, encoder.describe(), "", plan)


def _statistics(statistics: PolicyStatistics) -> str:
    if not statistics.features:
        return ""
    prefixes = ", ".join(f"{PREFIX}{feature}.*" for feature in statistics.features)
    return f"{prefixes}, from {statistics.origin}: to be copied by a rule that says what they belong to"
