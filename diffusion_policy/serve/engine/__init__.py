"""From an observation to a chunk of actions: the engine behind every transport, and what makes it fast."""

from diffusion_policy.serve.engine.policy_engine import Engine, Inference, PolicyEngine, Prepared, processor_name

__all__ = ["Engine", "Inference", "PolicyEngine", "Prepared", "processor_name"]
