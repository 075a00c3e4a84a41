"""Loads initial weights and normalizer into the live and EMA models, and records where they came from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.settings_fit import check_settings
from diffusion_policy.adapt.starting_point import check_relative
from diffusion_policy.checkpoint import Checkpoint
from diffusion_policy.hub import address_entry, address_of
from diffusion_policy.model.diffusion.ema_model import EMAModel
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.spec import check_semantics
from diffusion_policy.storage import file_sha256
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.data import Data, instantiate
from diffusion_policy.workspace.normalizing import choose_normalizer
from diffusion_policy.workspace.run_state import RunState
from diffusion_policy.workspace.start import (
    OpenedStart,
    Start,
    accepted_changes,
    config_changes,
    describe_ledger,
    load_pretrained,
)

logger = logging.getLogger(__name__)

Policy = PolicyModule


@dataclass
class Initialization:
    """How the run was initialized.

    Attributes:
        start: the decision where to start.
        ledger: of the weights loaded from a pretrained checkpoint, also after resuming; None from scratch.
        run_state: state of the resumed run; None for a new run.
        provenance: entries for every checkpoint of this run.
    """

    start: Start
    ledger: Ledger | None
    run_state: RunState | None
    provenance: dict[str, Any]
    _resumed: Checkpoint | None = field(default=None, repr=False)

    def figures(self) -> dict[str, Any]:
        """Entries of the first line of metrics: start, and counts of inherited, grown and fresh tensors.

        Includes the address of a checkpoint from a hub, with its commit.
        """
        counts = {} if self.ledger is None else describe_ledger(self.ledger)
        address = address_of(self.start.path or "")
        return {"start": self.start.origin, **({"start_address": address} if address else {}), **counts}

    def make_ema(self, settings: DictConfig, averaged: Policy) -> EMAModel:
        """The EMA that updates `averaged`; in a resumed run its step counter continues."""
        ema: EMAModel = instantiate(settings, "ema", model=averaged)
        if self.run_state is not None and self.run_state.ema is not None:
            ema.load_state_dict(self.run_state.ema)
        return ema

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer state of the resumed run."""
        assert self._resumed is not None
        return self._resumed.state_dicts["optimizer"]


def initialize(
    cfg: DictConfig, opened: OpenedStart, model: Policy, ema_model: Policy | None, data: Data
) -> Initialization:
    """Load weights and normalizer of the start into both models.

    Raises:
        TrainingError, AdaptError, CheckpointError, SpecError: the checkpoint does not fit, or its actions and the
            dataset's differ in meaning.
    """
    start, checkpoint = opened.start, opened.checkpoint
    logger.info("start: %s%s (%s)", start.origin, f" {start.path}" if start.path else "", start.reason)
    if checkpoint is not None and start.origin == "own checkpoint":
        return _resume(start, checkpoint, cfg, model, ema_model, data)
    ledger = None
    provenance: dict[str, Any] = {"action_semantics": model.spec.semantics}
    if data.dataset.frame_sizes:
        provenance["frame_sizes"] = {
            camera: [list(size) for size in sizes] for camera, sizes in data.dataset.frame_sizes.items()
        }
    if data.dataset.gripper_scale:
        provenance["gripper_scale"] = list(data.dataset.gripper_scale)  # scale of the recordings; the policy's is 0..1
    if checkpoint is not None:
        ledger = load_pretrained(checkpoint, cfg, model, ema_model)[1]
        _check_dataset_against(checkpoint, data)
        provenance |= _pretrained_provenance(checkpoint)
        logger.info("inherited %(inherited_tensors)d tensors (%(inherited_parameters)d parameters), grown "
                    "%(grown_tensors)d (%(grown_parameters)d new parameters), fresh %(fresh_tensors)d "
                    "(%(fresh_parameters)d parameters)", describe_ledger(ledger))  # fmt: skip
        provenance["inheritance"] = ledger.to_json()
    policies = [policy for policy in (model, ema_model) if policy is not None]
    choose_normalizer(cfg.normalizer, data.normalizer, model.spec, policies, pretrained=checkpoint is not None)
    provenance["start"] = start.to_json()
    if data.dataset.addresses:
        provenance["dataset_addresses"] = list(data.dataset.addresses)
    return Initialization(start, ledger, None, provenance)


def _resume(
    start: Start, checkpoint: Checkpoint, cfg: DictConfig, model: Policy, ema_model: Policy | None, data: Data
) -> Initialization:
    """Restore models and state of the resumed run from its checkpoint."""
    path = checkpoint.path
    if checkpoint.run_state is None:
        raise TrainingError(
            f"{path} was not written by this program: it lacks the EMA's step, the schedule and the position in the "
            f"data, so the run cannot be continued; start a new one from it with pretrained.path={path} in a new folder"
        )
    _check_addresses(checkpoint, data)
    state = RunState.from_plain(checkpoint.run_state, str(path))
    for change in config_changes(checkpoint.cfg, cfg):
        logger.warning("the config differs from that of the run: %s", change)
    order = data.order()
    if state.progress.batch and state.data != order:
        changed = [f"{key}: {state.data[key]} -> {order[key]}" for key in order if state.data.get(key) != order[key]]
        raise TrainingError(
            f"{path} was saved in the middle of an epoch whose batches are different now ({'; '.join(changed)}); "
            "resume with the settings and the dataset of the run"
        )
    check_settings(checkpoint, cfg, accepted_changes(cfg))
    check_relative(checkpoint, model.spec)
    for part, policy in (("model", model), ("ema_model", ema_model)):
        if policy is not None:
            _load(policy, checkpoint, part)
    provenance = dict(checkpoint.provenance or {})
    ledger = Ledger.from_json(provenance["inheritance"]) if "inheritance" in provenance else None
    logger.info("resumed at epoch %d, update %d", state.progress.epoch, state.progress.global_step)
    return Initialization(start, ledger, state, provenance, checkpoint)


def _check_addresses(checkpoint: Checkpoint, data: Data) -> None:
    """Refuse to continue with a different commit of a hub dataset than the run has read."""
    before = list((checkpoint.provenance or {}).get("dataset_addresses", data.dataset.addresses))
    now = list(data.dataset.addresses)
    if now and before != now:
        wanted = f"[{','.join(before)}]" if len(before) > 1 else "".join(before)
        raise TrainingError(
            f"{checkpoint.path}: the run has read {', '.join(before)}; the config now names {', '.join(now)}. "
            f"Resume with what it has read (task.dataset_path='{wanted}'), or start a new run: "
            f"pretrained.path={checkpoint.path}"
        )


def _load(policy: Policy, checkpoint: Checkpoint, part: str) -> None:
    try:
        policy.load_state_dict(checkpoint.state_dict(part))
    except RuntimeError as error:
        raise TrainingError(
            f"{checkpoint.path}: its {part} does not fit the config: {error}; resume with the config of the run"
        ) from error


def _check_dataset_against(checkpoint: Checkpoint, data: Data) -> None:
    """Check that the actions of checkpoint and dataset have the same meaning."""
    semantics = (checkpoint.provenance or {}).get("action_semantics")
    if semantics is not None and data.dataset.semantics is not None:
        check_semantics(data.dataset.semantics, semantics, f"the dataset with {checkpoint.path}")


def _pretrained_provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Provenance of the pretrained weights: name, hash and hub of the file, and the adaptation that it records."""
    path = checkpoint.path
    provenance: dict[str, Any] = {"pretrained": {"name": path.name, "sha256": file_sha256(path)} | address_entry(path)}
    adaptation = (checkpoint.provenance or {}).get("adaptation")
    if adaptation is not None:
        provenance["adaptation"] = adaptation
    return provenance
