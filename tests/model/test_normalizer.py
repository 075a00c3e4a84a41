import math

import numpy as np
import pytest
import torch

from diffusion_policy.model import ModelError
from diffusion_policy.model.normalizer import (
    LinearNormalizer,
    SingleFieldLinearNormalizer,
    get_image_range_normalizer,
)


@pytest.fixture
def poses() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(50, 3) * torch.tensor([1.0, 20.0, 0.3]) + torch.tensor([5.0, -3.0, 0.0])


def test_limits_reach_minus_one_and_one(poses: torch.Tensor) -> None:
    field = SingleFieldLinearNormalizer.create_fit(poses)
    normalized = field.normalize(poses)
    torch.testing.assert_close(normalized.amin(0), -torch.ones(3))
    torch.testing.assert_close(normalized.amax(0), torch.ones(3))
    torch.testing.assert_close(field.unnormalize(normalized), poses)


def test_a_dimension_that_hardly_moves_is_only_shifted() -> None:
    data = np.array([[0.5, 0.0], [0.50005, 1.0]])
    field = SingleFieldLinearNormalizer.create_fit(data)
    assert field.params_dict["scale"].tolist() == [1.0, 2.0]
    assert field.params_dict["offset"].tolist() == [-0.5, -1.0]


def test_statistics_are_those_of_the_data(poses: torch.Tensor) -> None:
    stats = SingleFieldLinearNormalizer.create_fit(poses.reshape(5, 10, 3)).get_input_stats()
    torch.testing.assert_close(stats["min"].data, poses.amin(0))
    torch.testing.assert_close(stats["max"].data, poses.amax(0))
    torch.testing.assert_close(stats["mean"].data, poses.mean(0))
    torch.testing.assert_close(stats["std"].data, poses.std(0))


def test_one_row_is_enough() -> None:
    field = SingleFieldLinearNormalizer.create_fit(torch.tensor([[2.0, 3.0]]))
    assert field.get_input_stats()["std"].tolist() == [0.0, 0.0]
    assert field.normalize(torch.tensor([2.0, 3.0])).tolist() == [0.0, 0.0]


def test_gaussian_mode(poses: torch.Tensor) -> None:
    normalized = SingleFieldLinearNormalizer.create_fit(poses, mode="gaussian").normalize(poses)
    torch.testing.assert_close(normalized.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std(0), torch.ones(3))


@pytest.mark.parametrize("data", [torch.empty(0, 3), torch.tensor([[1.0, math.nan]])], ids=["empty", "nan"])
def test_bad_data_is_refused(data: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="needs finite data"):
        SingleFieldLinearNormalizer.create_fit(data)


def test_unknown_mode_is_refused(poses: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="mode is 'limit'; expected 'limits' or 'gaussian'"):
        SingleFieldLinearNormalizer.create_fit(poses, mode="limit")  # type: ignore[arg-type]


def test_given_numbers_must_fit_each_other() -> None:
    stats = {name: torch.zeros(2) for name in ("min", "max", "mean", "std")}
    with pytest.raises(ModelError, match="vectors of one shape"):
        SingleFieldLinearNormalizer.create_manual(torch.ones(3), torch.zeros(2), stats)
    with pytest.raises(ModelError, match="expected min, max, mean and std"):
        SingleFieldLinearNormalizer.create_manual(torch.ones(2), torch.zeros(2), {"min": torch.zeros(2)})


def test_images_and_identity() -> None:
    image = get_image_range_normalizer()
    pixels = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(image.normalize(pixels), pixels * 2 - 1)
    assert image.get_input_stats()["std"].item() == pytest.approx(math.sqrt(1 / 12))
    torch.testing.assert_close(SingleFieldLinearNormalizer.create_identity().normalize(pixels), pixels)


def test_keys_are_normalized_by_name_and_width(poses: torch.Tensor) -> None:
    normalizer = LinearNormalizer()
    with pytest.raises(ModelError, match="no entry 'pose'; it is empty: call set_normalizer"):
        normalizer.normalize({"pose": poses})
    normalizer.fit({"pose": poses, "action": poses[:, :2]})
    assert list(normalizer) == ["action", "pose"]
    assert "pose" in normalizer
    assert "image" not in normalizer
    back = normalizer.unnormalize(normalizer.normalize({"pose": poses}))
    torch.testing.assert_close(back["pose"], poses)
    with pytest.raises(ModelError, match=r"no entry 'pos'; it knows \['action', 'pose'\]"):
        normalizer.normalize({"pos": poses})
    with pytest.raises(ModelError, match="holds 2 dimensions"):
        normalizer["action"].normalize(poses)


def test_a_file_replaces_all_entries_and_keeps_the_order_of_names(poses: torch.Tensor) -> None:
    source, target = LinearNormalizer(), LinearNormalizer()
    source["pose"] = SingleFieldLinearNormalizer.create_fit(poses)
    source["action"] = SingleFieldLinearNormalizer.create_fit(poses[:, :2])
    target.fit({"left over": poses})
    target.load_state_dict(source.state_dict())
    names = [f"{key}.{name}" for key in ("action", "pose") for name in ("offset", "scale")]
    assert [name for name in target.state_dict() if "stats" not in name] == [f"params_dict.{name}" for name in names]
    assert list(target.state_dict())[2:6] == [
        f"params_dict.action.input_stats.{n}" for n in ("max", "mean", "min", "std")
    ]
    assert not any(parameter.requires_grad for parameter in target.parameters())
    # A copy, not a view of the source.
    source["pose"].params_dict["scale"].data.zero_()
    assert target["pose"].params_dict["scale"].ne(0).all()


def test_an_incomplete_file_is_refused(poses: torch.Tensor) -> None:
    source = LinearNormalizer()
    source.fit({"pose": poses})
    state = source.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*params_dict.pose.scale"):
        source.load_state_dict({key: value for key, value in state.items() if not key.endswith("scale")} | {})
