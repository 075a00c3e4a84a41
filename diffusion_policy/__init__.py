"""Fine-tune a trained diffusion policy for robot manipulation, and know what was loaded and what its logs show."""

from diffusion_policy import moved

__version__ = "0.1.0"

moved.install()
