"""The policy: observations in, a sequence of actions out."""

SCHEDULER_NAMES = ("ddim", "ddpm", "dpm-solver++")  # of `sampler.SCHEDULERS`; known without loading torch
