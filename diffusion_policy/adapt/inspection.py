"""Inspects a weights file without running code from it, and checks its bytes where the format has checksums.

Names and shapes come from the file's headers. The only tensors that are read are the minimum and maximum of the action,
which show on which layout of seven dimensions a policy was trained. PyTorch's archives contain checksums, which are
compared; a file without checksums is not read as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.adapt.carry_over import CarryOver, carry_over
from diffusion_policy.adapt.foreign import is_checkpoint
from diffusion_policy.adapt.ledger import Count, Ref
from diffusion_policy.adapt.named_axes import policy_config
from diffusion_policy.adapt.target import NORMALIZER
from diffusion_policy.checkpoint import ACTION_SCALE, WEIGHTS, config_of
from diffusion_policy.families import ENTRIES, Recognized, diffusion_policy_image, lerobot_diffusion, recognize
from diffusion_policy.families.family import ABSENT, lookup
from diffusion_policy.families.lerobot_statistics import PolicyStatistics, read_statistics
from diffusion_policy.policy.registry import class_of_options
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.spec import layout_from_range, sign_of_quaternion
from diffusion_policy.tables import Printable, Table, Text, numbers
from diffusion_policy.tensor_file import TensorFile, TensorInfo, open_tensor_file
from diffusion_policy.tensor_file.wrapped_names import Wrapping, wrapping_of

MAX_CLASSES = 12  # listed on the terminal
# Action, observations and settings.
Described = tuple[dict[str, Any], dict[str, str], dict[str, Any]]
LAYOUTS = {
    "xyz_quat": "position and quaternion (xyzw), by the range of its numbers",
    "xyz_quat_gripper": "position, quaternion (xyzw) and gripper, by the range of its numbers",
    "xyz_rotvec_width": "position, rotation vector and gripper width in meters, by the range of its numbers",
    "unknown": "the range of its numbers does not determine the layout",
}


@dataclass(frozen=True)
class TensorGroup:
    """The tensors whose names have the same leading part; `double_names` counts second names of a tensor."""

    name: str
    count: Count
    nbytes: int
    dtypes: tuple[str, ...]
    double_names: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name, **self.count.to_json(), "bytes": self.nbytes,
            "dtypes": list(self.dtypes), "double_names": self.double_names,
        }  # fmt: skip


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect_file`.

    Attributes:
        path: the file.
        format: the container format.
        nbytes: size of all its tensors, each counted once.
        family: the family of networks, as a sentence; "no known family" if it is not recognized.
        settings: settings of the family that follow from the shapes of the tensors.
        nesting: names at the top level of the file.
        groups: tensors grouped by leading name, separately for each part of a checkpoint.
        action: names of the action's dimensions and the layout that fits their ranges; empty without a config.
        observations: description of each observation by key; empty without a config.
        config: the policy's settings; empty without a config.
        provenance: the origin that a checkpoint of this project records.
        integrity: which checksums the file has and whether they were compared, as a sentence.
        wrapping: parts that wrappers such as torch.compile inserted into the names, and the rules that remove them.
        stand_ins: how many objects of each class, of other programs, were not read.
        carried: for another program's file, what a policy here can take over; None for this project's checkpoints.
    """

    path: Path
    format: str
    nbytes: int
    family: str
    settings: Mapping[str, Any]
    nesting: tuple[str, ...]
    groups: tuple[TensorGroup, ...]
    action: Mapping[str, Any]
    observations: Mapping[str, str]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any] | None
    integrity: str
    wrapping: Wrapping | None = None
    carried: CarryOver | None = None
    stand_ins: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "file": self.path.name, "format": self.format, "bytes": self.nbytes, "family": self.family,
            "settings": dict(self.settings), "nesting": list(self.nesting),
            "groups": [group.to_json() for group in self.groups], "action": dict(self.action),
            "observations": dict(self.observations), "config": dict(self.config), "provenance": self.provenance,
            "integrity": self.integrity, "wrapping": None if self.wrapping is None else self.wrapping.describe(),
            "stand_ins": dict(self.stand_ins), "carried": None if self.carried is None else self.carried.to_json(),
        }  # fmt: skip

    def table(self) -> list[Printable]:
        """The inspection as a table for the terminal."""
        facts = Table("", "")
        for name, value in self._facts():
            facts.add(Text(name, style="dim"), str(value))
        groups = Table("group", *numbers("keys", "tensors", "parameters", "MB"), "types", "double names")
        for group in self.groups:
            count = (f"{number:,}" for number in (group.count.keys, group.count.tensors, group.count.parameters))
            groups.add(group.name, *count, f"{group.nbytes / 1e6:,.1f}", " ".join(group.dtypes),
                           str(group.double_names or ""))  # fmt: skip
        return [facts, Text(), groups]

    def _facts(self) -> list[tuple[str, Any]]:
        facts: list[tuple[str, Any]] = [
            ("file", f"{self.path.name}, {self.format}, {self.nbytes / 1e6:,.1f} MB of tensors"),
            ("bytes", self.integrity),
            ("family", self.family),
            ("top level", ", ".join(self.nesting[:12])),
        ]
        if self.stand_ins:
            classes = ", ".join(f"{name} ({count})" for name, count in list(self.stand_ins.items())[:MAX_CLASSES])
            more = len(self.stand_ins) - MAX_CLASSES
            facts.append(
                ("not read", f"objects of other programs' classes: {classes}{f', {more} more' if more > 0 else ''}")
            )
        if self.wrapping is not None:
            rules = " ".join(self.wrapping.rules)
            facts.append(("names", f"{self.wrapping.describe()}; removed by --rules {rules}"))
        if self.settings:
            facts.append(("from shapes", ", ".join(f"{key} {value}" for key, value in self.settings.items())))
        if self.action:
            facts.append(("action", f"{' '.join(self.action['names'])}: {self.action['layout']}"))
        facts.extend((f"observes {key}", what) for key, what in self.observations.items())
        if self.config:
            facts.append(("policy", ", ".join(f"{key} {value}" for key, value in self.config.items())))
        facts.extend(self.carried.facts() if self.carried else ())
        adaptation = (self.provenance or {}).get("adaptation")
        if adaptation:
            source = adaptation["source"]
            facts.append(("adapted from", f"{source['name']}, sha256 {source['sha256']}"))
        return facts


def inspect_file(path: str | Path) -> Inspection:
    """Inspect a weights file.

    Raises:
        WorkspaceError: it cannot be opened safely; the subclass and its message give the reason.
    """
    file = open_tensor_file(path)
    file.check_format()
    recognized = recognize({name: info.shape for name, info in file.tensors.items()})
    tree = file.tree if isinstance(file.tree, Mapping) else {}
    cfg = config_of(tree["cfg"], file.path) if is_checkpoint(file) else None
    if cfg is not None and "policy" in cfg:
        described = _policy(file, cfg)
        carried = None
    else:
        described = _lerobot_policy(file, recognized) or _workspace_policy(tree)
        statistics = read_statistics(file) if _is_lerobot(recognized) else PolicyStatistics()
        carried = carry_over(file, statistics)
        described = _with_ranges(described, statistics)
    provenance = tree.get("provenance")
    return Inspection(
        path=file.path,
        format=file.format,
        nbytes=sum({info.storage: info.nbytes for info in file.tensors.values()}.values()),
        family=_family(recognized, is_checkpoint=cfg is not None),
        settings=recognized.settings if recognized else {},
        nesting=tuple(dict.fromkeys(name.split(".", 1)[0] for name in (tree or file.tensors))),
        groups=_groups(file),
        action=described[0],
        observations=described[1],
        config=described[2],
        provenance=provenance if isinstance(provenance, Mapping) else None,
        integrity=file.integrity.describe(),
        wrapping=_wrapping(file, is_checkpoint=cfg is not None),
        carried=carried,
        stand_ins=file.stand_ins,
    )


def _is_lerobot(recognized: Recognized | None) -> bool:
    return recognized is not None and recognized.family is lerobot_diffusion.FAMILY


def _workspace_policy(tree: Mapping[str, Any]) -> Described:
    """Action and observations by the shape_meta in a config, of diffusion_policy's workspaces or in Lightning's hyper-
    parameters; empty if there is none.
    """
    for config in (tree.get("cfg"), tree.get("hyper_parameters"), tree):
        meta = diffusion_policy_image.shape_meta_of(config)
        if meta:
            width, layout = diffusion_policy_image.action_layout(config, meta)
            target = lookup(config, "policy._target_") if isinstance(config, Mapping) else ABSENT
            settings = {"class": target} if isinstance(target, str) else {}
            return {"names": [width], "layout": layout}, diffusion_policy_image.observations(meta), settings
    return {}, {}, {}


def _with_ranges(described: Described, statistics: PolicyStatistics) -> Described:
    """Adds what the action's statistics reveal about its numbers, if a policy's files have them."""
    ranges = statistics.features.get("action", {})
    if not described[0] or not {"min", "max"} <= ranges.keys():
        return described
    sign = sign_of_quaternion({name: tensor.tolist() for name, tensor in ranges.items()})
    layout = f"{sign}; {described[0]['layout']}" if sign else described[0]["layout"]
    ends = {name: ranges[name].tolist() for name in ("min", "max")}
    return {**described[0], "layout": layout, **ends}, described[1], described[2]


def _lerobot_policy(file: TensorFile, recognized: Recognized | None) -> Described | None:
    """Action, observations and settings by the config.json in the folder of a LeRobot policy; None for other files."""
    if not _is_lerobot(recognized):
        return None
    config = lerobot_diffusion.read_config(file.path if file.path.is_dir() else file.path.parent)
    if config is None:
        return {}, {}, {"config.json": "not in the folder of the weights: which defaults apply depends on the version"}
    expected = lerobot_diffusion.shapes(config)
    held = {
        name: info.shape for name, info in file.tensors.items() if not name.startswith(lerobot_diffusion.STATISTICS)
    }
    differing = [name for name in {**expected, **held} if expected.get(name) != held.get(name)]
    agrees = "describes these tensors" if not differing else f"differs in {len(differing)} tensors, as {differing[0]}"
    width = lerobot_diffusion.action_width(config)
    action = {
        "names": [f"{width} numbers"],
        "layout": "nothing in the policy's files says what they are; its dataset does",
    }
    summary = {key: config[key] for key in lerobot_diffusion.SUMMARY if key in config}
    return action, lerobot_diffusion.observations(config), {"config.json": agrees, **summary}


def _wrapping(file: TensorFile, *, is_checkpoint: bool) -> Wrapping | None:
    """Parts that wrappers inserted into names: of a checkpoint, into its weights; of another file, into any name."""
    if not is_checkpoint:
        return wrapping_of(file.tensors, "")
    parts = (f"state_dicts.{which}." for which in WEIGHTS)
    names = [[name.removeprefix(part) for name in file.tensors if name.startswith(part)] for part in parts]
    return next(filter(None, (wrapping_of(each, ACTION_SCALE) for each in names)), None)


def _family(recognized: Recognized | None, *, is_checkpoint: bool) -> str:
    if recognized is None:
        return "no known family"
    return f"{recognized.family.title}, a checkpoint of it" if is_checkpoint else recognized.sentence


def _groups(file: TensorFile) -> tuple[TensorGroup, ...]:
    """Tensors grouped by the first part of their names below the file's entry that contains them."""
    heads = {name.split(".", 1)[0] for name in file.tensors}
    nested = 1 if set(ENTRIES[2:]) <= heads else 0
    members: dict[str, list[TensorInfo]] = {}
    for name, info in file.tensors.items():
        parts = name.split(".")
        depth = 3 if parts[0] == "state_dicts" else 1 + nested
        members.setdefault(".".join(parts[:depth]), []).append(info)
    return tuple(_group(name, infos) for name, infos in members.items())


def _group(name: str, infos: list[TensorInfo]) -> TensorGroup:
    count = Count.of(Ref(info.name, info.shape, info.storage) for info in infos)
    nbytes = sum({info.storage: info.nbytes for info in infos}.values())
    dtypes = tuple(sorted({info.dtype for info in infos}))
    return TensorGroup(name, count, nbytes, dtypes, count.keys - count.tensors)


def _policy(file: TensorFile, cfg: DictConfig) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Action, observations and settings according to a checkpoint's config."""
    options = policy_config(cfg)
    spec = step_spec_of(cfg)
    action: dict[str, Any] = {"names": list(spec.action_names), "layout": LAYOUTS["unknown"]}
    bounds = [f"state_dicts.model.{NORMALIZER}action.input_stats.{bound}" for bound in ("min", "max")]
    if all(name in file.tensors for name in bounds):
        low, high = (file.load(name).tolist() for name in bounds)
        informative = len({*low}) > 1 or len({*high}) > 1  # -1..1 or 0..1 throughout is a placeholder
        action |= {
            "layout": LAYOUTS[layout_from_range(low, high) if informative else "unknown"],
            "min": low,
            "max": high,
        }
    observations = {
        field.key: f"image {field.shape[2]}x{field.shape[1]}" if field.kind == "rgb" else " ".join(field.names)
        for field in spec.obs
    }
    summary = {key: options[key] for key in class_of_options(options).tensors.summary if key in options}
    task = OmegaConf.select(cfg, "task.name")
    return action, observations, {**({"task": task} if task else {}), **summary}
