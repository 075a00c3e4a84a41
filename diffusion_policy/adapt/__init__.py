"""Checkpoint to checkpoint, by declared rules, with every tensor accounted for.

    source tensors --+
    target tensors --+--> plan --> apply --> checkpoint + ledger
    rules (YAML)   --+      |
                            +--> or an error that states why the names differ and which rule would resolve it

Nothing is guessed: a tensor that no rule explains is an error, and so is a rule that explains no tensor.
"""

from diffusion_policy.errors import AdaptError

__all__ = ["AdaptError"]
