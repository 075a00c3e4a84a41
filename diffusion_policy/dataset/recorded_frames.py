"""What a dataset's ledger says about the original frames, before they were resized."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.images import FrameKind


def recorded_frames(buffer: ReplayBuffer) -> dict[str, tuple[FrameKind, ...]]:
    """Per camera, the kinds of frames in each episode, as far as recorded."""
    kinds_of_camera: dict[str, list[FrameKind]] = defaultdict(list)
    for episode in _episodes(buffer):
        sizes, kinds = episode.get("frame_size"), episode.get("frame_kinds")
        for camera, size in sizes.items() if isinstance(sizes, Mapping) else ():
            known = kinds.get(camera) if isinstance(kinds, Mapping) else None
            if isinstance(known, list) and known:
                kinds_of_camera[camera] += [FrameKind(**kind) for kind in known]
            elif isinstance(size, list) and len(size) == 2:  # from a converter that recorded no more
                kinds_of_camera[camera].append(
                    FrameKind(int(size[0]), int(size[1]), first=str(episode.get("name", "")))
                )
    return {camera: tuple(frames) for camera, frames in kinds_of_camera.items()}


def accepts_mixed_frames(buffer: ReplayBuffer) -> bool:
    """Whether the conversion was allowed frames that differ (`--mixed-frames accept`)."""
    settings = _conversion(buffer).get("settings")
    return isinstance(settings, Mapping) and settings.get("mixed_frames") == "accept"


def _conversion(buffer: ReplayBuffer) -> Mapping[str, Any]:
    conversion = buffer.root.attrs.get("conversion")
    return conversion if isinstance(conversion, Mapping) else {}


def _episodes(buffer: ReplayBuffer) -> list[Mapping[str, Any]]:
    episodes = _conversion(buffer).get("episodes")
    return [one for one in episodes if isinstance(one, Mapping)] if isinstance(episodes, list) else []
