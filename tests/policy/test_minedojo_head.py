"""The head for MineDojo's slots: its names, its targets, its decoding, and its place next to VPT's own head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from vpt_factory import config, frames, tiny_policy

from diffusion_policy.checkpoint import CheckpointError, build_policy
from diffusion_policy.minecraft.actions import VPT_ACTION
from diffusion_policy.minecraft.minedojo import CameraRemainder, MineDojoSpace
from diffusion_policy.policy.sequences import sequence_loss


def pressed(*names: str, pitch: float = 0.0, yaw: float = 0.0) -> list[float]:
    return [*(float(name in names) for name in VPT_ACTION[:-2]), pitch, yaw]


def test_targets_are_slots_with_what_rounding_leaves_carried_through_an_episode() -> None:
    policy = tiny_policy(head="minedojo")
    turns = [pressed("forward", yaw=4.0)] * 4
    action, first = torch.tensor([turns, turns]), torch.zeros(2, 4, dtype=torch.bool)
    first[:, 0] = first[1, 2] = True
    found, memory = policy.classes_of(action, first, policy.initial_memory(2))
    assert found["fore_back"].tolist() == [[1] * 4] * 2
    # 4, 8 -> 15, then 12 - 15 = -3, 1; in the second row 8 - 15 is forgotten where an episode starts.
    assert found["yaw"].tolist() == [[12, 13, 12, 12], [12, 13, 12, 13]]
    assert memory["camera_owed"].tolist() == [[0.0, 1.0], [0.0, -7.0]]
    parts, carried = [], policy.initial_memory(2)
    for cut in (slice(0, 1), slice(1, 4)):
        some, carried = policy.classes_of(action[:, cut], first[:, cut], carried)
        parts.append(some["yaw"])
    assert torch.equal(torch.cat(parts, dim=1), found["yaw"])


def test_its_answers_are_translated_back() -> None:
    policy, space = tiny_policy(head="minedojo"), MineDojoSpace()
    wanted = [pressed("forward", "attack", yaw=15.0), pressed("left", "jump", pitch=-30.0)]
    classes, _ = policy.classes_of(torch.tensor([wanted]), torch.tensor([[True, False]]), policy.initial_memory(1))
    np.testing.assert_array_equal(policy.action_of(classes)[0], np.float32(wanted))
    action, memory = policy.answer(frames(2, 3), torch.tensor([[True, False, False]] * 2), policy.initial_memory(2))
    assert action.shape == (2, 3, 22)
    for numbers in action.flatten(0, 1).tolist():
        buttons = {name: int(value) for name, value in zip(VPT_ACTION[:-2], numbers, strict=False)}
        assert not space.from_vpt({**buttons, "camera": numbers[-2:]}, CameraRemainder()).lost
    assert "camera_owed" in memory


def test_it_learns_while_vpts_own_head_rests() -> None:
    policy = tiny_policy(head="minedojo", learns="heads").train()
    own = {name for name in policy.state_dict() if name.startswith("minedojo_head.")}
    assert own == policy.state_dict().keys() - tiny_policy().state_dict().keys()
    first = torch.zeros(1, 3, dtype=torch.bool)
    batch = {"obs": frames(1, 3), "action": torch.tensor([[pressed("attack")] * 3]), "first": first}
    loss, _ = sequence_loss(policy, batch, policy.initial_memory(1))
    loss.backward()
    with_gradient = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert with_gradient == own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "other"}, "expected joint or minedojo"),
        ({"head": "minedojo", "camera_interval": 7}, "does not divide"),
    ],
)
def test_other_heads_and_intervals_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_policy(OmegaConf.create(config(**options)))
