"""Fine-tune a trained diffusion policy for robot manipulation, and know what was loaded and what was learned."""

__version__ = "0.1.0"
