"""Noise schedulers: one built with another's options, and their paths."""

import inspect

import pytest
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from diffusion_policy.model.diffusion.noise_schedulers import scheduler_class, with_noise_levels_of
from diffusion_policy.policy import SCHEDULER_PATHS

GIVEN = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
GIVEN |= {"variance_type": "fixed_large", "clip_sample": False, "steps_offset": 1, "algorithm_type": "sde-dpmsolver++"}
KINDS = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler)


def test_the_paths_are_those_of_the_classes():
    assert tuple(map(scheduler_class, SCHEDULER_PATHS.values())) == KINDS


@pytest.mark.parametrize("first", KINDS)
def test_it_is_what_from_config_makes_there_and_back(first):
    """Options that the intermediate one lacks (the first's `variance_type`, `clip_sample`) come back."""
    known = inspect.signature(first.__init__).parameters
    given = first(**{name: value for name, value in GIVEN.items() if name in known})
    for second in KINDS:
        ours = theirs = given
        for kind in (second, first):
            ours, theirs = with_noise_levels_of(ours, kind), kind.from_config(theirs.config)
            assert type(ours) is kind
            assert comparable(ours) == comparable(theirs)
            assert ours.alphas_cumprod.tolist() == theirs.alphas_cumprod.tolist()


def comparable(scheduler):
    return {name: sorted(value) if name == "_use_default_values" else value for name, value in scheduler.config.items()}
