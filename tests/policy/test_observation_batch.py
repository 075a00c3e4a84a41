import math

import pytest
import torch

from diffusion_policy.policy.observation_batch import PolicyError, observation_batch
from diffusion_policy.spec import read_shape_meta

SPEC = read_shape_meta(
    {
        "obs": {"image": {"shape": [3, 4, 5], "type": "rgb"}, "pose": {"shape": [7], "type": "low_dim"}},
        "action": {"shape": [7]},
    }
)


def observed() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"image": torch.randint(0, 256, (2, 3, 3, 4, 5), dtype=torch.uint8), "pose": torch.rand(2, 3, 7)}


def checked(obs: dict[str, torch.Tensor], n_steps: int = 2, check_finite: bool = True) -> dict[str, torch.Tensor]:
    return observation_batch(SPEC, obs, n_steps, torch.device("cpu"), check_finite=check_finite)


def test_first_steps_as_floats() -> None:
    obs = observed()
    batch = checked({**obs, "not asked for": torch.zeros(1)})
    assert list(batch) == ["image", "pose"]
    assert torch.equal(batch["image"], obs["image"][:, :2].float() / 255)
    assert torch.equal(batch["pose"], obs["pose"][:, :2])


def test_bytes_and_unit_floats_are_the_same_image() -> None:
    obs = observed()
    floats = {**obs, "image": obs["image"].float() / 255}
    assert torch.equal(checked(obs)["image"], checked(floats)["image"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image", torch.full((2, 2, 3, 4, 5), 255.0), r"hold values from 255 to 255; floats must be in \[0, 1\]"),
        ("image", torch.full((2, 2, 3, 4, 5), -0.01), "hold values from -0.01"),
        ("image", torch.full((2, 2, 3, 4, 5), math.nan), "hold values from nan"),
        ("image", torch.zeros(2, 2, 3, 4, 5, dtype=torch.int64), "are torch.int64; expected uint8, or floats"),
        ("image", torch.zeros(2, 2, 4, 5, 3), r"shape \(2, 2, 4, 5, 3\); expected \(B, 2 or more, 3, 4, 5\)"),
        ("image", torch.zeros(2, 3, 4, 5), r"shape \(2, 3, 4, 5\)"),
        ("image", torch.zeros(1, 2, 3, 4, 5), "differ in batch size: {'image': 1, 'pose': 2}"),
        ("pose", torch.zeros(2, 1, 7), r"shape \(2, 1, 7\); expected \(B, 2 or more, 7\)"),
        ("pose", torch.zeros(2, 2, 8), r"shape \(2, 2, 8\)"),
        ("pose", torch.zeros(2, 2, 7, dtype=torch.int32), "is torch.int32; expected floats"),
        ("pose", torch.full((2, 2, 7), math.inf), "holds NaN or infinity"),
        ("pose", torch.zeros(2, 2, 7).numpy(), "is ndarray; expected a torch tensor"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        checked({**observed(), key: value})


def test_missing_key_is_refused() -> None:
    obs = observed()
    del obs["pose"]
    with pytest.raises(PolicyError, match=r"lacks \['pose'\]; it has \['image'\]"):
        checked(obs)


def test_training_leaves_states_to_the_loss() -> None:
    obs = {**observed(), "pose": torch.full((2, 2, 7), math.nan)}
    assert checked(obs, check_finite=False)["pose"].isnan().all()
