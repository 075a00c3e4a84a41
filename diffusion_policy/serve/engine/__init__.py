"""The engine, which computes an action chunk from an observation, and its optimizations."""

from diffusion_policy.cpu import processor_name
from diffusion_policy.serve.engine.policy_engine import Engine, Inference, PolicyEngine, Prepared

__all__ = ["Engine", "Inference", "PolicyEngine", "Prepared", "processor_name"]
