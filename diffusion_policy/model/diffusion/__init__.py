"""The denoiser, what it may see, and the running average of its weights."""
