"""Checkpoint to checkpoint, by declared rules, with every tensor accounted for.

    source tensors --+
    target tensors --+--> plan --> apply --> checkpoint + ledger
    rules (YAML)   --+      |
                            +--> or an error that says why the names differ and which rule would settle it

Nothing here guesses: a tensor that no rule explains is an error, a rule that explains nothing is one too.
"""

from diffusion_policy.errors import AdaptError

__all__ = ["AdaptError"]
