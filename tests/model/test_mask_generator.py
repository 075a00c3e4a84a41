import torch

from diffusion_policy.model.diffusion.mask_generator import LowdimMaskGenerator


def test_observed_features_of_the_first_steps_are_known() -> None:
    mask = LowdimMaskGenerator(action_dim=2, obs_dim=3, max_n_obs_steps=2)((1, 4, 5))
    assert mask[0].int().tolist() == [[0, 0, 1, 1, 1]] * 2 + [[0] * 5] * 2


def test_nothing_is_known_when_observations_are_a_condition() -> None:
    assert not LowdimMaskGenerator(action_dim=7, obs_dim=0)((2, 16, 7)).any()


def test_files_name_its_place_holder() -> None:
    state = LowdimMaskGenerator(action_dim=7, obs_dim=0).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {"_dummy_variable": (0,)}
    assert state["_dummy_variable"].dtype == torch.float32
