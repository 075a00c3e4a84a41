"""Checkpoints of other programs as sources of an adaptation: their weights by name, everything else to be dropped.

    LeRobot's folder, a workspace of diffusion_policy or UMI, Lightning's .ckpt, a .pth of any nesting
        --> Checkpoint without a config: state_dicts {"model", "ema_model"}, others

The result has the target's config, so training accepts it (`pretrained.path`). The source's policy belongs to other
code, so it is not run, and nothing is proven about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.foreign_statistics import statistics_of
from diffusion_policy.adapt.weights_of import Names, Weights, weights_of
from diffusion_policy.checkpoint import Checkpoint, in_float32
from diffusion_policy.commands import command
from diffusion_policy.policy.registry import POLICY_TARGETS
from diffusion_policy.tensor_file import TensorFile

MAX_TEXT = 400
NOT_RUN = (
    "the source's policy belongs to another program and was not run: nothing is proven about what the new one computes"
)


def is_checkpoint(file: TensorFile) -> bool:
    """Whether a file is a checkpoint of this project's policies (or of the predecessor's, which they read)."""
    if not isinstance(file.tree, Mapping) or not {"cfg", "state_dicts"} <= file.tree.keys():
        return False
    target = policy_target(file)
    return target is None or target in POLICY_TARGETS


def policy_target(file: TensorFile) -> str | None:
    """The policy class that a workspace's config names; None if it names none."""
    node: Any = file.tree
    for key in ("cfg", "policy", "_target_"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, str) else None


def read_foreign(file: TensorFile) -> Checkpoint:
    """The weights of another program's file, live and averaged, as float32; everything else under `others`.

    The statistics that a LeRobot policy has are added under ``statistics.FEATURE.``, as this project's normalizer holds
    them, and a note says where they come from.

    Raises:
        AdaptError: it has no weights with names.
        TensorFileError: its bytes are damaged.
    """
    weights = weights_of(file)
    if not weights.live:
        raise AdaptError(
            f"{file.path}: there are no weights with names in it ({weights.describe()}); see what is in it: "
            f"{command('adapt', 'inspect', file.path)}"
        )
    file.integrity.check()
    states = {"model": _loaded(file, weights.live)}
    if weights.average:
        states["ema_model"] = _loaded(file, weights.average)
    state_dicts, notes = in_float32(states)
    statistics = statistics_of(file)
    for state in state_dicts.values():
        state.update(statistics.tensors)
    return Checkpoint(
        path=Path(file.path),
        cfg=OmegaConf.create({}),
        state_dicts=state_dicts,
        pickles={},
        notes=(*notes, *statistics.notes, *_notes(file, weights), NOT_RUN),
        others=weights.rest,
    )


def _notes(file: TensorFile, weights: Weights) -> list[str]:
    entry = repr(weights.entry) if weights.entry else "the top level"
    notes = [f"live weights come from {entry}: {len(weights.live)}"]
    if weights.average:
        notes.append(f"averaged weights come from {weights.average_entry!r}: {len(weights.average)}")
    if file.stand_ins:
        notes.append(f"objects of other programs' classes were not read: {', '.join(file.stand_ins)[:MAX_TEXT]}")
    if weights.unnamed:
        notes.append(f"{weights.unnamed} tensors in lists have no names, so nothing tells which is which")
    return notes


def _loaded(file: TensorFile, names: Names) -> dict[str, Tensor]:
    return {name: file.load(path) for name, path in names.items()}
