"""The VPT policy that reinforcement learning starts from: released weights, or a checkpoint of this project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_policy.checkpoint import Checkpoint, load_policy, read_checkpoint
from diffusion_policy.commands import setting
from diffusion_policy.hub import address_entry, local_copy
from diffusion_policy.policy.vpt_image_policy import VPTImagePolicy
from diffusion_policy.storage import file_sha256
from diffusion_policy.workspace import TrainingError

PRETRAINED = "pretrained"


@dataclass(frozen=True)
class PretrainedVPT:
    """A policy with weights as they were found.

    Attributes:
        policy: on the CPU.
        options: section ``policy`` of the config that builds the policy.
        account: what was loaded, in one line.
        provenance: name, hash and hub of the file, and which of its weights were used.
    """

    policy: VPTImagePolicy
    options: dict[str, Any]
    account: str
    provenance: dict[str, Any]


def open_pretrained(settings: DictConfig, before: dict[str, Any] | None = None) -> PretrainedVPT:
    """The policy named by a config's ``pretrained``.

    Args:
        settings: ``pretrained`` of the config.
        before: provenance of the resumed run, which must have started from the same file; None: a new run.

    Raises:
        TrainingError: it names no file, the file is missing, or it is another policy or another file than before.
        WorkspaceError: the file cannot be read.
    """
    if settings.path is None:
        raise TrainingError(
            "reinforcement learning starts from a VPT policy and pretrained.path is not set; name .weights of VPT or a "
            f"checkpoint of train_vpt_bc: {setting('pretrained.path', 'data/outputs/vpt_bc/checkpoints/latest.ckpt')}"
        )
    path = local_copy(settings.path)
    if not path.is_file():
        raise TrainingError(f"{setting('pretrained.path', settings.path)}: no such file; correct the path")
    checkpoint = read_checkpoint(path)
    which = settings.which or checkpoint.deployed
    policy = vpt_policy(checkpoint, which)
    found = {"name": path.name, "sha256": file_sha256(path), "which": which} | address_entry(path)
    known = (before or {}).get(PRETRAINED, found)
    if before is not None and known["sha256"] != found["sha256"]:
        raise TrainingError(
            f"{path} is not the file that this run started from ({known['name']}, sha256 {known['sha256'][:12]}) "
            "and is kept near; name that one, or start a new run from the run's own checkpoint"
        )
    count, numbers = len(policy.state_dict()), sum(parameter.numel() for parameter in policy.parameters())
    account = f"{checkpoint.where}: {which}, {count} tensors ({numbers:,} numbers), missing 0, left over 0"
    options = OmegaConf.to_container(checkpoint.cfg.policy, resolve=True)
    assert isinstance(options, dict)
    named_options = {str(name): value for name, value in options.items()} | {"learns": "all"}  # whatever cloning did
    notes = "".join(f"; {note}" for note in checkpoint.notes)
    return PretrainedVPT(policy, named_options, account + notes, {PRETRAINED: found})


def vpt_policy(checkpoint: Checkpoint, which: str) -> VPTImagePolicy:
    """The VPT policy of a checkpoint.

    Raises:
        TrainingError: it belongs to another policy.
        WorkspaceError: it holds no such weights, or they do not fit.
    """
    policy = load_policy(checkpoint, which)
    if not isinstance(policy, VPTImagePolicy):
        raise TrainingError(
            f"{checkpoint.path}: a checkpoint of {type(policy).__name__}; PPO takes VPT's policy, .weights or a "
            "checkpoint of train_vpt_bc"
        )
    if policy.head != "joint":
        raise TrainingError(
            f"{checkpoint.path}: it acts with the head of policy.head={policy.head}; PPO improves VPT's own: clone "
            "with policy.head=joint"
        )
    return policy
