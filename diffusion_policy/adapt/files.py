"""Opens sources and targets by the names that users give (files, configs, models), and plans or adapts a pair of them.

A checkpoint of the policy is planned as a whole (live and averaged weights, optimizer, counters), and so is another
program's file if the target is a policy of this project, whose config the new checkpoint gets. With any other target a
weights file is one state dict, and the result of its adaptation is a weights file as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.apply import (
    adapt_checkpoint,
    apply_plan,
    ledger_document,
    ledger_of,
    refuse_overwriting,
    step_counter,
    written_with,
)
from diffusion_policy.adapt.checkpoint_plan import plan_checkpoint
from diffusion_policy.adapt.foreign import is_checkpoint, read_foreign
from diffusion_policy.adapt.ledger import Count, Ledger, Ref
from diffusion_policy.adapt.plan import make_plan
from diffusion_policy.adapt.rules import Rules, read_rules
from diffusion_policy.adapt.target import (
    Target,
    target_from_checkpoint,
    target_from_config,
    target_from_manifest,
    target_from_shapes,
)
from diffusion_policy.checkpoint import Checkpoint, read_checkpoint
from diffusion_policy.families.changes import parse_change, with_changes
from diffusion_policy.families.definitions import DEFINITIONS, is_config, open_definition
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.tensor_file import TensorFile, open_tensor_file
from diffusion_policy.tensor_file.saving import save_torch_zip
from diffusion_policy.training_config import compose_config_file

_ABSENT = object()
WEIGHTS_SUFFIXES = (".pt", ".pth", ".weights")
CHECKPOINT_SUFFIX = ".ckpt"


def open_target(
    name: str | Path,
    dataset: str | Path | None = None,
    changes: Sequence[str] = (),
    gripper_scale: str | None = None,
) -> Target:
    """A target by name: a checkpoint, a JSON manifest, a training config (name or path), or a model such as `vpt`.

    Args:
        name: as above. A checkpoint together with changes means its config with these changes.
        dataset: zarr that the statistics of new dimensions come from; for configs only.
        changes: changes of the config: "a.b=v", or "+a.b=v" for a key that a training config does not have.
        gripper_scale: the scale of the dataset's gripper where it is not 0..1.

    Raises:
        AdaptError: no target has that name, or a change names a key that does not exist.
    """
    path = Path(name)
    if path.suffix == ".ckpt":
        if not changes:
            return target_from_checkpoint(path)
        return target_from_config(
            _changed(read_checkpoint(path, wrapped=True).cfg, changes), path.name, dataset, gripper_scale=gripper_scale
        )
    if path.suffix == ".json" and not is_config(path):
        if changes:
            raise AdaptError(f"{name} is a manifest and has no config to change")
        return target_from_manifest(path)
    definition = open_definition(name)
    if definition is not None:
        config = with_changes(definition.config, [parse_change(definition, change) for change in changes])
        return target_from_shapes(definition.file_shapes(config), definition.name)
    composed = compose_config_file(path)
    if composed is None:
        raise AdaptError(f"no target {str(name)!r}; expected a training config, .ckpt, .json, {', '.join(DEFINITIONS)}")
    return target_from_config(_changed(composed, changes), path.stem, dataset, gripper_scale=gripper_scale)


def _changed(cfg: DictConfig, changes: Sequence[str]) -> DictConfig:
    for change in changes:
        key, equals, _ = change.removeprefix("+").partition("=")
        if not equals:
            raise AdaptError(f"cannot read the change {change!r}; expected key=value")
        if not change.startswith("+") and OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT:
            raise AdaptError(f"the config has no {key!r} to change; write +{change} to add it")
    merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist([change.removeprefix("+") for change in changes]))
    assert isinstance(merged, DictConfig)
    return merged


def plan_file(source: str | Path, target: Target, rules: Rules) -> Ledger:
    """The ledger of an adaptation; no file is written.

    Raises:
        AdaptError: not everything is accounted for.
    """
    file = open_tensor_file(source)
    if is_checkpoint(file) or target.cfg is not None:
        return plan_checkpoint(_checkpoint(file), target, rules).ledger
    file.check_format()
    return make_plan(file.tensors, target.infos, rules, part="weights", target_axes=target.axes).ledger


def apply_file(
    source: str | Path,
    target: Target,
    rules: Rules,
    out: str | Path,
    *,
    ledger_path: str | Path | None = None,
    must_preserve: bool = False,
    overwrite: bool = False,
    on_progress: Progress = no_progress,
) -> Ledger:
    """Plan and carry out an adaptation, write the result and read it back; see `apply.adapt_checkpoint`.

    Raises:
        AdaptError: as `adapt_checkpoint`; for files without a config also if `out` has no suffix of a weights file.
    """
    file, out = open_tensor_file(source), Path(out)
    if is_checkpoint(file) or (target.cfg is not None and out.suffix == CHECKPOINT_SUFFIX):
        return adapt_checkpoint(
            _checkpoint(file), target, rules, out,
            ledger_path=ledger_path, must_preserve=must_preserve, overwrite=overwrite, on_progress=on_progress,
        )  # fmt: skip
    if must_preserve:
        raise AdaptError(
            f"{source} is not a checkpoint with a config, so its policy cannot be run and nothing can be proven"
        )
    if out.suffix not in WEIGHTS_SUFFIXES:
        whole = f"; a checkpoint with the target's config as {CHECKPOINT_SUFFIX}" if target.cfg is not None else ""
        raise AdaptError(f"{out}: weights without a config are written as {', '.join(WEIGHTS_SUFFIXES)}{whole}")
    ledger_path = ledger_of(out, ledger_path)
    refuse_overwriting(out, file.path, ledger_path, overwrite=overwrite)
    plan = make_plan(file.tensors, target.infos, rules, part="weights", target_axes=target.axes)
    done = step_counter(4, on_progress)
    file.integrity.check()
    done(None)
    state = done(apply_plan(plan, _LazyTensors(file), target.state))
    with written_with(ledger_path, ledger_document(plan.ledger, rules, file.path, file.sha256()), out) as write_ledger:

        def check(finished: Path) -> None:
            written = open_tensor_file(done(finished))
            count = Count.of(Ref(info.name, info.shape, info.storage) for info in written.tensors.values())
            if count != plan.ledger.target_totals["weights"] or any(
                not torch.equal(written.load(key), tensor) for key, tensor in state.items()
            ):
                raise AdaptError(f"{out}: holds {count} after writing, which is not what was planned")
            write_ledger(finished)
            done(None)

        save_torch_zip(out, state, check)
    return plan.ledger


def _checkpoint(file: TensorFile) -> Checkpoint:
    """The checkpoint in a file, or the weights of another program's file as one."""
    return read_checkpoint(file.path, wrapped=True) if is_checkpoint(file) else read_foreign(file)


def rules_of(names: Sequence[str]) -> Rules:
    """The joined rules of these files; without files, source and target must have the same names and shapes."""
    return read_rules(*names) if names else Rules()


@dataclass(frozen=True)
class _LazyTensors(Mapping[str, Tensor]):
    """A file's tensors by name, each memory-mapped on access."""

    file: TensorFile

    def __getitem__(self, name: str) -> Tensor:
        return self.file.load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.tensors)

    def __len__(self) -> int:
        return len(self.file.tensors)
