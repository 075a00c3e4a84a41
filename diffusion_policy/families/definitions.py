"""Definitions of models by name or config.json: for `whatif`, and as targets of an adaptation."""

from __future__ import annotations

from pathlib import Path

from diffusion_policy.families import groot_flat, groot_n1_5, vpt
from diffusion_policy.families.family import FamilyError, ModelDefinition

DEFINITIONS = {**vpt.DEFINITIONS, "groot_n1_5": groot_n1_5.definition, **groot_flat.DEFINITIONS}


def open_definition(model: str | Path) -> ModelDefinition | None:
    """The definition of a model.

    Args:
        model: `vpt` (also `vpt_1x`, `vpt_3x`), `groot_n1_5`, `groot_n1_6`, `groot_n1_7`, or the path of a GR00T
            config.json.

    Returns:
        The definition; None for any other name.

    Raises:
        FamilyError: a JSON file is not the config.json of a GR00T model.
    """
    if str(model) in DEFINITIONS:
        return DEFINITIONS[str(model)]()
    path = Path(model)
    if path.suffix != ".json":
        return None
    nested = groot_n1_5.read_config(path)
    if nested is not None:
        return groot_n1_5.definition(nested)
    flat = groot_flat.read_config(path)
    if flat is not None:
        return groot_flat.definition(flat)
    known = f"N1.5 has action_head_cfg, N1.6 and N1.7 the model_type {groot_flat.N1_6} or {groot_flat.N1_7}"
    raise FamilyError(f"{path}: is not the config.json of a GR00T model ({known})")


def is_config(path: Path) -> bool:
    """Whether a JSON file is the config.json of a known model; FamilyError if it cannot be read."""
    return groot_n1_5.read_config(path) is not None or groot_flat.read_config(path) is not None
