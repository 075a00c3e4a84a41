"""Models of the families by name or by their config.json: what `whatif` changes, and what a plan may aim at."""

from __future__ import annotations

from pathlib import Path

from diffusion_policy.families import groot_n1_5, vpt
from diffusion_policy.families.family import FamilyError, ModelDefinition, Shape

DEFINITIONS = {**vpt.DEFINITIONS, "groot_n1_5": groot_n1_5.definition}


def open_definition(model: str | Path) -> ModelDefinition | None:
    """`vpt` (also `vpt_1x`, `vpt_3x`), `groot_n1_5`, or the path of a GR00T config.json; None for any other name.

    Raises FamilyError for a JSON file that is not the config.json of a GR00T N1.5 model.
    """
    if str(model) in DEFINITIONS:
        return DEFINITIONS[str(model)]()
    path = Path(model)
    if path.suffix != ".json":
        return None
    config = groot_n1_5.read_config(path)
    if config is None:
        raise FamilyError(f"{path}: holds no action_head_cfg, so it is not the config.json of a GR00T N1.5 model")
    return groot_n1_5.definition(config)


def target_shapes(model: str | Path) -> dict[str, Shape] | None:
    """Names and shapes of a whole checkpoint of that model, as a plan's target; None if it is of no family here."""
    definition = open_definition(model)
    return definition.file_shapes(definition.config) if definition else None
