import copy

import pytest
import torch

from diffusion_policy.model import ModelError
from diffusion_policy.model.cpu.group_norm import GroupNorm
from diffusion_policy.model.obs_encoder import ObsEncoder, ResNet18Conv, SpatialSoftmax
from diffusion_policy.spec import StepSpec, read_shape_meta

CAMERAS = read_shape_meta(
    {
        "obs": {
            "front": {"shape": [3, 40, 72], "type": "rgb"},
            "pose": {"shape": [7], "type": "low_dim"},
            "wrist": {"shape": [3, 33, 32], "type": "rgb"},
        },
        "action": {"shape": [7]},
    }
)


def make_encoder(spec: StepSpec = CAMERAS, crop: tuple[int, int] | None = None, **options: object) -> ObsEncoder:
    settings = {"use_group_norm": True, "eval_fixed_crop": True, **options}
    return ObsEncoder(spec, crop, **settings).eval()  # type: ignore[arg-type]


def observation(n: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {field.key: torch.rand(n, *field.shape) * 2 - 1 for field in CAMERAS.obs}


def test_features_follow_the_order_of_shape_meta() -> None:
    encoder = make_encoder()
    obs = observation(2)
    with torch.no_grad():
        features = encoder(obs)
    assert encoder.output_shape() == (64 + 7 + 64,)
    assert features.shape == (2, 135)
    assert torch.equal(features[:, 64:71], obs["pose"])
    assert (features[:, :64] >= 0).all(), "ReLU after the projection"
    assert (features[:, 71:] >= 0).all()


def test_cameras_of_different_sizes_have_their_own_feature_grid() -> None:
    nets = make_encoder().obs_nets
    assert nets["front"].pool.pos_x.shape == (1, 2 * 3)
    assert nets["wrist"].pool.pos_x.shape == (1, 2 * 1)
    cropped = make_encoder(crop=(32, 32)).obs_nets
    assert cropped["front"].pool.pos_x.shape == cropped["wrist"].pool.pos_x.shape == (1, 1)


def test_backbone_and_pool_have_two_names_and_one_tensor() -> None:
    state = make_encoder().state_dict()
    twins = [(name, name.replace("backbone.", "nets.0.", 1)) for name in state if ".backbone." in name]
    twins += [(name, name.replace("pool.", "nets.1.", 1)) for name in state if ".pool." in name]
    assert len(twins) == 2 * (60 + 5)
    assert all(state[first].data_ptr() == state[second].data_ptr() for first, second in twins)
    copied = copy.deepcopy(make_encoder()).state_dict()
    assert all(copied[first].data_ptr() == copied[second].data_ptr() for first, second in twins)


def test_a_file_with_two_values_for_one_tensor_is_refused() -> None:
    encoder = make_encoder()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.load_state_dict(state)  # separate tensors of equal values are no contradiction
    state["obs_nets.wrist.nets.1.nets.bias"] += 1
    with pytest.raises(RuntimeError, match=r"obs_nets.wrist.pool.nets.bias and .* but the file has two values"):
        encoder.load_state_dict(state)


@pytest.mark.parametrize("use_group_norm", [True, False])
def test_normalization_layers(use_group_norm: bool) -> None:
    encoder = make_encoder(use_group_norm=use_group_norm)
    kinds = {type(module) for module in encoder.modules()}
    assert (GroupNorm in kinds) is use_group_norm
    assert (torch.nn.BatchNorm2d in kinds) is not use_group_norm
    assert any("running_mean" in name for name in encoder.state_dict()) is not use_group_norm


def test_group_norm_has_groups_of_sixteen() -> None:
    assert GroupNorm(128).num_groups == 8


def test_feature_map_is_a_thirty_second_rounded_up() -> None:
    with torch.no_grad():
        assert ResNet18Conv(GroupNorm)(torch.zeros(1, 3, 162, 33)).shape == (1, 512, 6, 2)


@pytest.mark.parametrize(
    ("width", "stride", "shape"),
    [(64, 32, (512, 3, 5)), (16, 32, (128, 3, 5)), (16, 16, (128, 5, 9)), (32, 8, (256, 10, 18))],
)
def test_width_and_stride_make_the_backbone_smaller_and_its_map_larger(
    width: int, stride: int, shape: tuple[int, int, int]
) -> None:
    backbone = ResNet18Conv(GroupNorm, width, stride)
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 80, 144)).shape == (1, *shape)
    assert backbone.state_dict().keys() == ResNet18Conv(GroupNorm).state_dict().keys(), "the same names at any size"
    encoder = make_encoder(width=width, stride=stride)
    with torch.no_grad():
        assert encoder(observation(1)).shape == (1, *encoder.output_shape())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 24}, "encoder_width is 24; expected a multiple of 16"),
        ({"width": 0}, "encoder_width is 0"),
        ({"stride": 4}, "encoder_stride is 4; expected 32"),
        ({"activation": "gelu"}, "encoder_activation is 'gelu'; expected one of relu, none"),
    ],
)
def test_other_encoders_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_encoder(**options)


def test_convolutions_start_as_in_the_reference() -> None:
    torch.manual_seed(0)
    weight = ResNet18Conv(GroupNorm).nets[7][1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_spatial_softmax_finds_the_bright_spot() -> None:
    pool = SpatialSoftmax(1, (3, 5), keypoints=2)
    torch.nn.init.constant_(pool.nets.weight, 1.0)
    torch.nn.init.zeros_(pool.nets.bias)
    features = torch.zeros(1, 1, 3, 5)
    features[0, 0, 2, 1] = 100
    torch.testing.assert_close(pool(features), torch.tensor([[[-0.5, 1.0], [-0.5, 1.0]]]))


def test_jitter_acts_while_training_and_only_then() -> None:
    encoder = make_encoder(color_jitter={"brightness": 0.5})
    obs = observation(2)
    with torch.no_grad():
        assert torch.equal(encoder(obs), encoder(obs))
        encoder.train()
        assert not torch.equal(encoder(obs), encoder(obs))
        encoder.color_jitter = None
        assert torch.equal(encoder(obs), encoder(obs)), "nothing else is random with group norm and no crop"


def test_wrong_observations_are_refused() -> None:
    encoder, obs = make_encoder(), observation(1)
    with pytest.raises(ModelError, match=r"observation 'wrist' is missing; expected \(N, 3, 33, 32\)"):
        encoder({key: value for key, value in obs.items() if key != "wrist"})
    with pytest.raises(ModelError, match=r"observation 'pose' has shape \(1, 8\)"):
        encoder({**obs, "pose": torch.zeros(1, 8)})


def test_crops_and_cameras_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"crop_shape \(36, 32\) exceeds the images of 'wrist', 33x32"):
        make_encoder(crop=(36, 32))
    depth = read_shape_meta({"obs": {"depth": {"shape": [1, 40, 40], "type": "rgb"}}, "action": {"shape": [7]}})
    with pytest.raises(ModelError, match="'depth' has 1 channels"):
        make_encoder(depth)


@pytest.mark.parametrize("jitter", [None, {"hue": 0.1}])
def test_channels_are_innermost_in_memory_while_training(jitter: dict[str, float] | None) -> None:
    encoder = make_encoder(color_jitter=jitter).train()
    seen: list[torch.Tensor] = []
    encoder.obs_nets["front"].register_forward_pre_hook(lambda _, images: seen.extend(images))
    encoder(observation(2))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
