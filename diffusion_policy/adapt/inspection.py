"""What is in a file of weights, without running code from it, and whether its bytes are those that were written.

Names and shapes come from the file's headers; of the tensors themselves no more is looked at than the action's range,
a few numbers that tell which layout of seven dimensions a policy was trained on. An archive of PyTorch's carries
checksums, which are compared; a file without is not read for its own sake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Group
from rich.table import Table
from rich.text import Text

from diffusion_policy.adapt.layout import policy_config
from diffusion_policy.adapt.ledger import Count, Ref
from diffusion_policy.adapt.target import NORMALIZER
from diffusion_policy.checkpoint import ACTION_SCALE, WEIGHTS, config_of
from diffusion_policy.families import ENTRIES, Recognized, lerobot_diffusion, recognize
from diffusion_policy.policy.registry import class_of_options
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.spec import layout_from_range
from diffusion_policy.tensor_file import TensorFile, TensorInfo, open_tensor_file
from diffusion_policy.tensor_file.wrapped_names import Wrapping, wrapping_of

LAYOUTS = {
    "xyz_quat": "position and quaternion (xyzw), by the range of its numbers",
    "xyz_quat_gripper": "position, quaternion (xyzw) and gripper, by the range of its numbers",
    "xyz_rotvec_width": "position, rotation vector and gripper width in meters, by the range of its numbers",
    "unknown": "the range of its numbers does not tell the layout",
}


@dataclass(frozen=True)
class GroupOfTensors:
    """The tensors under one leading part of their names."""

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
    """What `inspect_file` found.

    Attributes:
        path: of the file.
        format: of the container.
        nbytes: size of all its tensors, each counted once.
        family: a sentence; says so if it is of no known family.
        settings: shape-bearing settings read off the tensors, by the family.
        nesting: names at the top level of the file.
        groups: tensors by leading name, the parts of a checkpoint apart.
        action: names of the action's dimensions and what their ranges say; empty if no config tells.
        observations: per key what it is; empty if no config tells.
        config: the policy's settings; empty if the file has no config.
        provenance: what an own checkpoint says of its origin.
        integrity: what tells whether the bytes are those that were written, in words.
        wrapping: what wrappers such as torch.compile have done to the names, and the rules that undo it; or None.
    """

    path: Path
    format: str
    nbytes: int
    family: str
    settings: Mapping[str, Any]
    nesting: tuple[str, ...]
    groups: tuple[GroupOfTensors, ...]
    action: Mapping[str, Any]
    observations: Mapping[str, str]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any] | None
    integrity: str
    wrapping: Wrapping | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "file": self.path.name, "format": self.format, "bytes": self.nbytes, "family": self.family,
            "settings": dict(self.settings), "nesting": list(self.nesting),
            "groups": [group.to_json() for group in self.groups], "action": dict(self.action),
            "observations": dict(self.observations), "config": dict(self.config), "provenance": self.provenance,
            "integrity": self.integrity, "wrapping": None if self.wrapping is None else self.wrapping.describe(),
        }  # fmt: skip

    def table(self) -> Group:
        """For the terminal."""
        facts = Table.grid(padding=(0, 2))
        for name, value in self._facts():
            facts.add_row(Text(name, "dim"), str(value))
        groups = Table("group", "keys", "tensors", "parameters", "MB", "types", "double names", box=None,
                       header_style="dim", title_justify="left")  # fmt: skip
        groups.columns[0].overflow = facts.columns[1].overflow = "fold"
        for column in groups.columns[1:5]:
            column.justify = "right"
        for group in self.groups:
            count = (f"{number:,}" for number in (group.count.keys, group.count.tensors, group.count.parameters))
            groups.add_row(group.name, *count, f"{group.nbytes / 1e6:,.1f}", " ".join(group.dtypes),
                           str(group.double_names or ""))  # fmt: skip
        return Group(facts, Text(), groups)

    def _facts(self) -> list[tuple[str, Any]]:
        facts: list[tuple[str, Any]] = [
            ("file", f"{self.path.name}, {self.format}, {self.nbytes / 1e6:,.1f} MB of tensors"),
            ("bytes", self.integrity),
            ("family", self.family),
            ("top level", ", ".join(self.nesting[:12])),
        ]
        if self.wrapping is not None:
            rules = " ".join(self.wrapping.rules)
            facts.append(("names", f"{self.wrapping.describe()}; left out by --rules {rules}"))
        if self.settings:
            facts.append(("read off shapes", ", ".join(f"{key} {value}" for key, value in self.settings.items())))
        if self.action:
            facts.append(("action", f"{' '.join(self.action['names'])}: {self.action['layout']}"))
        facts.extend((f"sees {key}", what) for key, what in self.observations.items())
        if self.config:
            facts.append(("policy", ", ".join(f"{key} {value}" for key, value in self.config.items())))
        adaptation = (self.provenance or {}).get("adaptation")
        if adaptation:
            source = adaptation["source"]
            facts.append(("adapted from", f"{source['name']}, sha256 {source['sha256']}"))
        return facts


def inspect_file(path: str | Path) -> Inspection:
    """Look into a file of weights.

    Raises:
        WorkspaceError: it cannot be opened safely; the subclass and its message say why.
    """
    file = open_tensor_file(path)
    file.check_format()
    found = recognize({name: info.shape for name, info in file.tensors.items()})
    tree = file.tree if isinstance(file.tree, Mapping) else {}
    cfg = config_of(tree["cfg"], Path(path)) if {"cfg", "state_dicts"} <= tree.keys() else None
    described = _policy(file, cfg) if cfg is not None and "policy" in cfg else _lerobot_policy(file, found)
    provenance = tree.get("provenance")
    return Inspection(
        path=Path(path),
        format=file.format,
        nbytes=sum({info.storage: info.nbytes for info in file.tensors.values()}.values()),
        family=_family(found, is_checkpoint=cfg is not None),
        settings=found.settings if found else {},
        nesting=tuple(dict.fromkeys(name.split(".", 1)[0] for name in (tree or file.tensors))),
        groups=_groups(file),
        action=described[0],
        observations=described[1],
        config=described[2],
        provenance=provenance if isinstance(provenance, Mapping) else None,
        integrity=file.integrity.describe(),
        wrapping=_wrapping(file, is_checkpoint=cfg is not None),
    )


def _lerobot_policy(
    file: TensorFile, found: Recognized | None
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Action, observations and settings by the config.json beside a policy of LeRobot; empty for other files."""
    if found is None or found.family is not lerobot_diffusion.FAMILY:
        return {}, {}, {}
    config = lerobot_diffusion.read_config(file.path if file.path.is_dir() else file.path.parent)
    if config is None:
        return {}, {}, {"config.json": "not beside the weights: which defaults apply depends on the version"}
    expected = lerobot_diffusion.shapes(config)
    held = {
        name: info.shape for name, info in file.tensors.items() if not name.startswith(lerobot_diffusion.STATISTICS)
    }
    differing = [name for name in {**expected, **held} if expected.get(name) != held.get(name)]
    agrees = "describes these tensors" if not differing else f"differs in {len(differing)} tensors, as {differing[0]}"
    width = lerobot_diffusion.action_width(config)
    action = {"names": [f"{width} numbers"], "layout": "no file of the policy names them; its dataset does"}
    summary = {key: config[key] for key in lerobot_diffusion.SUMMARY if key in config}
    return action, lerobot_diffusion.observations(config), {"config.json": agrees, **summary}


def _wrapping(file: TensorFile, *, is_checkpoint: bool) -> Wrapping | None:
    """Of a checkpoint's weights, the first that have any; else what wrappers did to any name in the file."""
    if not is_checkpoint:
        return wrapping_of(file.tensors, "")
    parts = (f"state_dicts.{which}." for which in WEIGHTS)
    names = [[name.removeprefix(part) for name in file.tensors if name.startswith(part)] for part in parts]
    return next(filter(None, (wrapping_of(each, ACTION_SCALE) for each in names)), None)


def _family(found: Recognized | None, *, is_checkpoint: bool) -> str:
    if found is None:
        return "no known family"
    return f"{found.family.title}, a checkpoint of it" if is_checkpoint else found.sentence


def _groups(file: TensorFile) -> tuple[GroupOfTensors, ...]:
    """Tensors by the first part of their names, after the entry of the file that they lie in."""
    heads = {name.split(".", 1)[0] for name in file.tensors}
    nested = 1 if set(ENTRIES[2:]) <= heads else 0
    members: dict[str, list[TensorInfo]] = {}
    for name, info in file.tensors.items():
        parts = name.split(".")
        depth = 3 if parts[0] == "state_dicts" else 1 + nested
        members.setdefault(".".join(parts[:depth]), []).append(info)
    return tuple(_group(name, infos) for name, infos in members.items())


def _group(name: str, infos: list[TensorInfo]) -> GroupOfTensors:
    count = Count.of(Ref(info.name, info.shape, info.storage) for info in infos)
    nbytes = sum({info.storage: info.nbytes for info in infos}.values())
    dtypes = tuple(sorted({info.dtype for info in infos}))
    return GroupOfTensors(name, count, nbytes, dtypes, count.keys - count.tensors)


def _policy(file: TensorFile, cfg: DictConfig) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Action, observations and settings that a checkpoint's config tells."""
    options = policy_config(cfg)
    spec = step_spec_of(cfg)
    action: dict[str, Any] = {"names": list(spec.action_names), "layout": LAYOUTS["unknown"]}
    bounds = [f"state_dicts.model.{NORMALIZER}action.input_stats.{bound}" for bound in ("min", "max")]
    if all(name in file.tensors for name in bounds):
        low, high = (file.load(name).tolist() for name in bounds)
        action |= {"layout": LAYOUTS[layout_from_range(low, high)], "min": low, "max": high}
    observations = {
        field.key: f"image {field.shape[2]}x{field.shape[1]}" if field.kind == "rgb" else " ".join(field.names)
        for field in spec.obs
    }
    summary = {key: options[key] for key in class_of_options(options).tensors.summary if key in options}
    counters = OmegaConf.select(cfg, "task.name")
    return action, observations, {**({"task": counters} if counters else {}), **summary}
