"""Whether a checkpoint's weights mean in a config what they were trained to mean, and the overrides that mend it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Sequence

from omegaconf import DictConfig

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.policy_settings import (
    COMPANIONS,
    Act,
    Difference,
    check_accepted,
    differences,
    unknown_settings,
)
from diffusion_policy.checkpoint import WEIGHTS, Checkpoint
from diffusion_policy.commands import setting

logger = logging.getLogger(__name__)


class SettingsError(AdaptError):
    """Weights that were trained with other settings than a config has.

    Attributes:
        found: what differs, with both values.
        overrides: of the config, that give it the checkpoint's settings.
        acceptance: the override that keeps the config's function-changing settings; "" where weights would not load.
        remedy: what to do, in lines.
    """

    def __init__(
        self, where: str, differing: Sequence[Difference], accepted: Collection[str], free: Sequence[Difference] = ()
    ) -> None:
        self.found = f"{where} was trained with other settings than this config: {'; '.join(map(str, differing))}"
        paths = {difference.path for difference in differing}
        follow = [each for each in free if paths.intersection(COMPANIONS.get(each.path, ()))]
        self.overrides = tuple(each.override for each in (*differing, *follow) if each.override)
        acting = [difference.name for difference in differing if difference.meaning.act is Act.FUNCTION]
        sizes = any(difference.meaning.act is Act.SIZE for difference in differing)
        self.acceptance = "" if sizes else setting("pretrained.accept", sorted({*accepted, *acting}))
        lines = []
        if self.overrides:
            lines.append(f"add to the command: {shlex.join(self.overrides)}")
        lines += [
            f"write {difference.name} as the checkpoint has it, {difference.theirs}, in a config of your own"
            for difference in differing
            if not difference.override
        ]
        if self.acceptance:
            lines.append(f"or, if the change is meant and training is to learn it: {shlex.quote(self.acceptance)}")
        self.remedy = "\n".join(lines)
        super().__init__(f"{self.found}\n{self.remedy}")


def check_settings(
    checkpoint: Checkpoint, cfg: DictConfig, accepted: Collection[str] = (), *, sizes: bool = True
) -> None:
    """Refuse a config under which a checkpoint's weights would have other shapes or compute something else.

    Args:
        checkpoint: whose weights are to be trained on.
        cfg: that is to be trained, its interpolations unresolved.
        accepted: settings, by their names in the config, that may change what is computed.
        sizes: whether settings that change names or shapes of tensors are refused too.

    Raises:
        SettingsError: names every such setting, both values, and the overrides.
        AdaptError: `accepted` names what is no setting.
    """
    where = str(checkpoint.path)
    check_accepted(accepted, cfg)
    state = next((checkpoint.state_dicts[which] for which in WEIGHTS if which in checkpoint.state_dicts), {})
    if "policy" not in checkpoint.cfg:
        logger.warning("%s: its config has no policy, so only sizes can be compared with this config's", where)
    elif strange := unknown_settings(checkpoint.cfg):
        logger.warning("%s was trained with settings that this version does not know: %s", where, ", ".join(strange))
    found = differences(checkpoint.cfg, {key: tuple(tensor.shape) for key, tensor in state.items()}, cfg)
    refused = [
        difference
        for difference in found
        if (difference.meaning.act is Act.FUNCTION and difference.name not in accepted)
        or (difference.meaning.act is Act.SIZE and sizes)
    ]
    if refused:
        raise SettingsError(where, refused, accepted, [each for each in found if each.meaning.act.free])
    for difference in found:
        if difference.meaning.act is Act.FUNCTION:
            logger.warning("%s was trained with %s; accepted by pretrained.accept", where, difference)
        else:
            logger.info("%s was trained with %s", where, difference)
