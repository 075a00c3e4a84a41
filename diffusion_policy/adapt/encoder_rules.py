"""Turns `encoder` rules into copies: the trunk of another policy's image encoder, part by part, into the one here.

The source's encoder is determined by the rule's `from`, by a camera of the same name, or because there is only one;
anything else is refused, listing the rules to choose from.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.rules import Rule, Rules
from diffusion_policy.families.image_encoders import ImageEncoder, image_encoders, twin_prefix
from diffusion_policy.tensor_file import TensorInfo

Infos = Mapping[str, TensorInfo]


def with_copies(rules: Rules, source: Infos, target: Infos) -> Rules:
    """The same rules with each `encoder` rule replaced by copies, one for each part of each camera's encoder.

    Args:
        rules: as read.
        source: the source's tensors by their names after all renames.
        target: the target's tensors.

    Raises:
        AdaptError: the target or the source has no such encoder, the source has several, or the two are not the same
            network.
    """
    if not any(rule.kind == "encoder" for rule in rules.rules):
        return rules
    expanded: list[Rule] = []
    for rule in rules.rules:
        expanded.extend(_copies(rule, source, target) if rule.kind == "encoder" else (rule,))
    return replace(rules, rules=tuple(expanded))


def _copies(rule: Rule, source: Infos, target: Infos) -> list[Rule]:
    sources, targets = (image_encoders({name: info.shape for name, info in side.items()}) for side in (source, target))
    wanted = [encoder for encoder in targets if _matches(encoder, rule.patterns)]
    if not wanted:
        cameras = ", ".join(encoder.camera for encoder in targets) or "no image encoder"
        raise AdaptError(f"{rule}: the target has no such camera; it has {cameras}")
    result: list[Rule] = []
    for encoder in wanted:
        origin = _chosen(rule, encoder, sources)
        fault = origin.unlike(encoder)
        if fault:
            raise AdaptError(f"the encoder of {origin.name} cannot become that of {encoder.camera}: {fault}")
        result.extend(_parts(rule, origin, encoder, source, target))
    return result


def _chosen(rule: Rule, wanted: ImageEncoder, sources: Sequence[ImageEncoder]) -> ImageEncoder:
    """The source's encoder for a camera of the target."""
    named = [encoder for encoder in sources if _matches(encoder, (rule.source or wanted.camera,))]
    if not rule.source and not named:
        named = list(sources)
    if len(named) == 1:
        return named[0]
    if not sources:
        raise AdaptError(f"{rule}: the source has no image encoder that is known; see what is in it with inspect")
    choices = ", ".join(f"{{encoder: {wanted.camera}, from: {encoder.name}}}" for encoder in sources)
    count = f"{len(named)} encoders of the source match" if named else f"the source has no encoder {rule.source!r}"
    raise AdaptError(f"{rule}: {count}; choose one for {wanted.camera}: {choices}")


def _matches(encoder: ImageEncoder, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in (encoder.camera, encoder.name) for glob in patterns)


def _parts(rule: Rule, origin: ImageEncoder, wanted: ImageEncoder, source: Infos, target: Infos) -> Iterator[Rule]:
    """A copy for each part of the network, under each of the names that the target has for it."""
    why = rule.why or f"the same network: {origin.describe()}"
    for part in dict.fromkeys(name.partition(".")[0] for name in wanted.shapes):
        theirs = _names(origin, part, source)
        for index, ours in enumerate(_names(wanted, part, target)):
            yield Rule("copy", (ours,), source=theirs[min(index, len(theirs) - 1)], why=why)


def _names(encoder: ImageEncoder, part: str, infos: Infos) -> list[str]:
    """The pattern of a part's names; a second one where the encoder is registered twice."""
    own = encoder.own_name(f"{part}.*")
    twin = twin_prefix(encoder.prefix) + own.removeprefix(encoder.prefix)
    is_twin = twin != own and any(name.startswith(twin.removesuffix("*")) for name in infos)
    return [own, twin] if is_twin else [own]
