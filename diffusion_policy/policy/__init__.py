"""The policy: observations in, a sequence of actions out."""

# Noise schedulers by the names that users know, with their class paths; available without loading torch.
SCHEDULER_PATHS = {
    "ddim": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
    "ddpm": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
    "dpm-solver++": "diffusers.schedulers.scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler",
}
SCHEDULER_NAMES = tuple(SCHEDULER_PATHS)
