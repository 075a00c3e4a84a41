"""The interactive replay: a slider over the frames of logs and episodes, with the chunk drawn from above and the side.

No camera calibration is known, so nothing is drawn into the frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.diagnose.playback import Frame, Playback
from diffusion_policy.report.page import Section, embedded, image_data, paragraph

# Number of frames in the page over all replays, about 10 kB each.
FRAMES = 320
MOST_REPLAYS = 6
FRAME_WIDTH = 320


def replay_section(playbacks: Sequence[Playback]) -> Section:
    """Returns a replay of each of the first few playbacks; a long one shows only every second, third, ... step."""
    shown = playbacks[:MOST_REPLAYS]
    data = {f"r{i}": replay_data(playback, FRAMES // len(shown)) for i, playback in enumerate(shown)}
    options = "".join(f'<option value="r{i}">{escape(playback.name)}</option>' for i, playback in enumerate(shown))
    choice = f'<p><label>Show <select class="which">{options}</select></label></p>'
    text = (
        "Move the slider, or focus it and use the arrow keys. Blue is the chunk from this step on: hollow dots open "
        "the gripper, filled ones close it. Gray is the arm's path; the ring is its current position."
    )
    more = f" {len(playbacks) - len(shown)} more are not shown." if len(playbacks) > len(shown) else ""
    legend = (
        '<p class="legend"><span><i style="--c:#2f86d1"></i>commanded</span><span><i style="--c:#e07b1a"></i>measured'
        '</span><span><i style="--c:#8b929c"></i>recorded</span></p>'
    )
    bodies = "".join(_one(f"r{i}", playback) for i, playback in enumerate(shown))
    body = paragraph(text + more) + (choice if len(shown) > 1 else "") + bodies + legend + embedded("replays", data)
    return Section("replay", "Replay", body)


def replay_data(playback: Playback, most_frames: int) -> dict[str, Any]:
    """Returns the data of one playback for the page's script."""
    assert playback.positions is not None
    assert playback.chunks is not None
    stride = -(-len(playback) // max(most_frames, 1))
    steps = np.arange(0, len(playback), stride)
    frames = [playback.frames(int(step)) for step in steps]
    cameras = list(dict.fromkeys(camera for of_step in frames for camera in of_step))
    return {
        "total": len(playback),
        "steps": steps.tolist(),
        "positions": _rounded(playback.positions[steps], 4),
        "chunks": _rounded(playback.chunks[steps], 4),
        "grippers": None if playback.chunk_grippers is None else _rounded(playback.chunk_grippers[steps], 3),
        "measured": None if playback.measured is None else _rounded(playback.measured[steps], 3),
        "recorded": None if playback.recorded is None else _rounded(playback.recorded[steps], 3),
        "seconds": None if playback.seconds is None else _rounded(playback.seconds[steps], 2),
        "cameras": cameras,
        "frames": [[_image(of_step.get(camera)) for camera in cameras] for of_step in frames],
    }


def _one(name: str, playback: Playback) -> str:
    title = escape(playback.name, quote=True)
    views = f"the chunk of {title} seen from above and from the side, and its gripper over time"
    return (
        f'<div class="replay-one" data-replay="{name}" data-views="{views}"><h3>{title}</h3><div class="replay">'
        f'<div class="cameras" data-title="{title}"></div>'
        '<div class="views"></div></div><div class="controls"><button type="button">Play</button>'
        f'<input type="range" min="0" value="0" step="1" aria-label="step of {title}"></div>'
        '<output aria-live="polite"></output></div>'
    )


def _image(frame: Frame | None) -> str | None:
    return None if frame is None else image_data(frame, FRAME_WIDTH)


def _rounded(values: NDArray[np.float64], decimals: int) -> Any:
    return np.round(values, decimals).tolist()
