"""Converts recorded trajectories to a dataset: parallel, in bounded memory, resumable, with every frame accounted for.

    survey      opens and checks every episode before anything is decoded          (survey)
    frames      decodes, resizes and packs blocks of frames                           (frames)
    staging     finished episodes, next to the output, from which --resume continues  (staging)
    assembly    makes one dataset of staged episodes, renamed into place when complete    (assembly)
    ledger      accounts for every episode and frame of the source: kept or dropped, and why  (ledger)

`run.convert` is the entry point.
"""

from diffusion_policy.convert.ledger import ConversionReport
from diffusion_policy.convert.run import convert
from diffusion_policy.convert.settings import ConversionError, ConversionSettings

__all__ = ["ConversionError", "ConversionReport", "ConversionSettings", "convert"]
