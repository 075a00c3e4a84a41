"""Fine-tune a trained diffusion policy for robot manipulation, and know what was loaded and what its logs show."""

__version__ = "0.1.0"
