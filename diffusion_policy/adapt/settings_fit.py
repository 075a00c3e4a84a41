"""Refuses a config whose settings differ from those of a checkpoint's training, and gives the overrides to restore."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Sequence

from omegaconf import DictConfig

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.policy_settings import (
    COMPANIONS,
    Difference,
    Scope,
    check_accepted,
    differences,
    unknown_settings,
)
from diffusion_policy.checkpoint import WEIGHTS, Checkpoint
from diffusion_policy.commands import setting

logger = logging.getLogger(__name__)


class SettingsError(AdaptError):
    """A config has other settings than the training of a checkpoint.

    Attributes:
        found: the settings that differ, with both values.
        overrides: overrides of the config that restore the checkpoint's settings.
        acceptance: the override that accepts the config's function-changing settings; "" if weights would not load.
        remedy: instructions, one per line.
    """

    def __init__(
        self, where: str, differing: Sequence[Difference], accepted: Collection[str], free: Sequence[Difference] = ()
    ) -> None:
        self.found = f"{where} was trained with other settings than this config: {'; '.join(map(str, differing))}"
        paths = {difference.path for difference in differing}
        dependent = [each for each in free if paths.intersection(COMPANIONS.get(each.path, ()))]
        self.overrides = tuple(each.override for each in (*differing, *dependent) if each.override)
        functional = [difference.name for difference in differing if difference.effect.scope is Scope.FUNCTION]
        sizes = any(difference.effect.scope is Scope.SIZE for difference in differing)
        self.acceptance = "" if sizes else setting("pretrained.accept", sorted({*accepted, *functional}))
        lines = []
        if self.overrides:
            lines.append(f"add to the command: {shlex.join(self.overrides)}")
        lines += [
            f"set {difference.name} to the checkpoint's value, {difference.trained}, in your own config"
            for difference in differing
            if not difference.override
        ]
        if self.acceptance:
            lines.append(f"or, to keep the change and let training adapt to it: {shlex.quote(self.acceptance)}")
        self.remedy = "\n".join(lines)
        super().__init__(f"{self.found}\n{self.remedy}")


def check_settings(
    checkpoint: Checkpoint, cfg: DictConfig, accepted: Collection[str] = (), *, sizes: bool = True
) -> None:
    """Refuse a config under which a checkpoint's weights would have other shapes or compute something else.

    Args:
        checkpoint: the checkpoint that the run starts from.
        cfg: config of the run, with unresolved interpolations.
        accepted: settings, by their names in the config, that may change the computation.
        sizes: whether settings that change names or shapes of tensors are refused as well.

    Raises:
        SettingsError: settings differ; the message gives each with both values, and the overrides.
        AdaptError: `accepted` has a name that is not a setting.
    """
    where = str(checkpoint.path)
    check_accepted(accepted, cfg)
    state = next((checkpoint.state_dicts[which] for which in WEIGHTS if which in checkpoint.state_dicts), {})
    if "policy" not in checkpoint.cfg:
        logger.warning("%s: its config has no policy, so only sizes can be compared with this config's", where)
    elif unknown := unknown_settings(checkpoint.cfg):
        logger.warning("%s was trained with settings that this version does not know: %s", where, ", ".join(unknown))
    differing = differences(checkpoint.cfg, {key: tuple(tensor.shape) for key, tensor in state.items()}, cfg)
    refused = [
        difference
        for difference in differing
        if (difference.effect.scope is Scope.FUNCTION and difference.name not in accepted)
        or (difference.effect.scope is Scope.SIZE and sizes)
    ]
    if refused:
        raise SettingsError(where, refused, accepted, [each for each in differing if each.effect.scope.free])
    for difference in differing:
        if difference.effect.scope is Scope.FUNCTION:
            logger.warning("%s was trained with %s; accepted by pretrained.accept", where, difference)
        else:
            logger.info("%s was trained with %s", where, difference)
