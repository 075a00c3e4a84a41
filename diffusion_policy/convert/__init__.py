"""Recorded trajectories -> dataset: in parallel, in bounded memory, resumable, with an account of every frame.

    survey      open and check every episode before anything is decoded          (survey)
    frames      blocks of frames: decode, resize, pack                           (frames)
    staging     finished episodes, next to the output; what --resume starts from  (staging)
    assembly    staged episodes -> one dataset, renamed into place when complete    (assembly)
    ledger      every episode and frame of the source: kept or dropped, and why  (ledger)

`run.convert` is the entry point.
"""

from diffusion_policy.convert.ledger import ConversionReport
from diffusion_policy.convert.run import convert
from diffusion_policy.convert.settings import ConversionError, ConversionSettings

__all__ = ["ConversionError", "ConversionReport", "ConversionSettings", "convert"]
