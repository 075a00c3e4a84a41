"""Closed-loop results: in memory, and as the JSON document that ``evaluate_closed_loop.py --json`` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffusion_policy.commands import command
from diffusion_policy.env_runner.results import (
    ResultError,
    SceneResult,
    grasped_of,
    latency_of,
    reasons_of,
    success_of,
    summary,
    totals_of,
)

DOCUMENT_VERSION = 1

_SCENE_KEYS = ("simulator", "seed")
# Results with equal conditions were measured in the same environment; anything else that differs is the policies'.
CONDITIONS = (
    "simulator", "n_action_steps", "seed", "latency_injected_ms", "latency_jitter_ms", "strategy", "through_server",
    "serve_settings",
)  # fmt: skip
_RESUME_KEYS = ("checkpoint_sha256", "weights", "scheduler", "steps", "actions", *CONDITIONS)
NO_SAMPLER = "none"  # of a policy that does not denoise
# Entries that every document has, and their types.
_ENTRY_TYPES: dict[str, tuple[type, ...]] = {
    "checkpoint": (str,),
    "checkpoint_sha256": (str,),
    "weights": (str,),
    "scheduler": (str,),
    "steps": (int,),
    "simulator": (Mapping,),
    "task": (str, type(None)),
    "referee": (str, type(None)),
    "n_action_steps": (int,),
    "seed": (int,),
    "latency_injected_ms": (int, float),
    "through_server": (bool,),
    "serve_settings": (list,),
    "notes": (list,),
    "scenes_asked": (int,),
}


@dataclass(frozen=True)
class VideoFile:
    """The video of one scene.

    Attributes:
        scene: number of the scene.
        file: path relative to the document's folder.
        sha256: hash of the file.
    """

    scene: int
    file: str
    sha256: str


@dataclass
class ClosedLoop:
    """The episodes of one checkpoint so far.

    Attributes:
        about: what was evaluated and how, as plain data.
        scenes: how many scenes were requested.
        results: of the scenes that have ended.
        videos: of some of these scenes.
    """

    about: dict[str, Any]
    scenes: int
    results: list[SceneResult]
    videos: list[VideoFile] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every scene has ended."""
        return len(self.results) == self.scenes

    def to_json(self) -> dict[str, Any]:
        """Returns the document that ``--json`` writes; ``read_document`` and ``read_closed_loop`` read it."""
        return {
            "format": "closed_loop",
            "version": DOCUMENT_VERSION,
            **self.about,
            "scenes_asked": self.scenes,
            "interrupted": not self.is_complete,
            **summary(self.results),
            "videos": [asdict(video) for video in self.videos],
        }


def read_document(path: Path) -> tuple[dict[str, Any], list[SceneResult]]:
    """Reads what ``--json`` wrote: the document and its scenes.

    Raises:
        ResultError: it cannot be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, Mapping) or content.get("format") != "closed_loop" or "scenes" not in content:
        made = command("evaluate_closed_loop", "CKPT", "--json", path.with_name("closed_loop.json"))
        raise ResultError(f"{path}: is not a closed-loop result; this command makes one: {made}")
    if content.get("version") != DOCUMENT_VERSION:
        raise ResultError(f"{path}: version {content.get('version')}; this code reads {DOCUMENT_VERSION}")
    if not isinstance(content["scenes"], list):
        raise ResultError(f"{path}: its scenes are {str(content['scenes'])[:80]}; expected a list")
    results = [SceneResult.read(entry, str(path)) for entry in content["scenes"]]
    if len({result.scene for result in results}) < len(results):
        raise ResultError(f"{path}: a scene is listed twice; expected once")
    return dict(content), results


def read_closed_loop(path: Path) -> ClosedLoop:
    """Reads what ``--json`` wrote, and checks every entry that the conditions are derived from.

    Raises:
        ResultError: it cannot be read, is something else, or lacks an entry.
    """
    content, results = read_document(path)
    for key, kinds in _ENTRY_TYPES.items():
        if not isinstance(content.get(key), kinds):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ResultError(f"{path}: {key} is {str(content.get(key))[:80]!r}; expected {expected}")
    env = content["simulator"].get("env")
    if not isinstance(env, Mapping) or not isinstance(env.get("_target_"), str):
        raise ResultError(f"{path}: simulator.env is {str(env)[:80]!r}; expected _target_ and its arguments")
    if len(results) > content["scenes_asked"]:
        raise ResultError(f"{path}: {len(results)} scenes of {content['scenes_asked']} requested ones")
    computed = {"format", "version", "scenes_asked", "interrupted", "videos", *summary([])}
    about = {key: value for key, value in content.items() if key not in computed}
    return ClosedLoop(about, content["scenes_asked"], results, _videos(content.get("videos", []), path))


def _videos(entries: Any, path: Path) -> list[VideoFile]:
    try:
        return [VideoFile(int(entry["scene"]), str(entry["file"]), str(entry["sha256"])) for entry in entries]
    except (TypeError, KeyError, ValueError) as error:
        raise ResultError(
            f"{path}: its videos are {str(entries)[:80]}; expected scene, file and sha256 each"
        ) from error


def differing(found: Mapping[str, Any], other: Mapping[str, Any], *, scenes_only: bool = False) -> list[str]:
    """Returns the conditions in which two documents differ; with ``scenes_only``, only simulator and seed."""
    keys = _SCENE_KEYS if scenes_only else CONDITIONS
    return [key for key in keys if found.get(key) != other.get(key)]


def check_same(found: Mapping[str, Any], other: Mapping[str, Any], where: str, *, scenes_only: bool = False) -> None:
    """Refuses to combine two results that were measured under different conditions.

    Args:
        found: the first document.
        other: the second document.
        where: name of the second document, for the message.
        scenes_only: only simulator and seed must agree, for a comparison of two checkpoints.

    Raises:
        ResultError: names what differs.
    """
    keys = _SCENE_KEYS if scenes_only else _RESUME_KEYS
    for key in keys:
        if found.get(key) != other.get(key):
            raise ResultError(f"{where} was made with another {key}: {other.get(key)!r}; here it is {found.get(key)!r}")


def conditions(found: ClosedLoop) -> str:
    """Returns one line: simulator, referee, steps executed, sampler, seeds."""
    about = found.about
    parts = [
        environment_summary(found),
        _executed(about),
        f"{_sampling(about)}, {about['weights']}",
        "through the server and its guard" if about["through_server"] else "policy in process, no guard",
        f"chunk strategy {about['strategy']}" if about.get("strategy") else "",
        f"latency of {about['latency_injected_ms']:g} ms injected" if about["latency_injected_ms"] else "",
        f"jitter of {about['latency_jitter_ms']:g} ms" if about.get("latency_jitter_ms") else "",
        f"seeds {about['seed']} to {about['seed'] + found.scenes - 1}",
    ]
    return "; ".join(part for part in parts if part)


def _executed(about: Mapping[str, Any]) -> str:
    steps = about["n_action_steps"]
    return "asked at every step" if steps == 1 else f"{steps} steps of a chunk executed"


def _sampling(about: Mapping[str, Any]) -> str:
    if about.get("actions") is not None:
        return f"actions {about['actions']}"
    return "no sampler" if about["scheduler"] == NO_SAMPLER else f"{about['scheduler']} in {about['steps']} steps"


def environment_summary(found: ClosedLoop) -> str:
    """Returns simulator, task and referee in a few words."""
    about = found.about
    env = about["simulator"]["env"]
    where = str(env.get("game") or str(env["_target_"]).rpartition(".")[2])
    named = f"{where}, {about['task']}" if about["task"] else where
    return f"{named}; referee {about['referee']}" if about["referee"] else named


def video_name(result: SceneResult) -> str:
    """Returns the file name, such as ``scene_0003_failed_closed_beside.mp4``."""
    outcome = "success" if result.success else f"failed_{result.reason}"
    return f"scene_{result.scene:04d}_{re.sub(r'[^a-z0-9]+', '_', outcome.lower()).strip('_')}.mp4"


def summary_rows(found: ClosedLoop) -> list[tuple[str, str]]:
    """Returns the rows of a summary: success and grasps with their intervals, failures, conditions."""
    about, results = found.about, found.results
    grasped, latency = grasped_of(results), latency_of(results)
    rows = [
        ("success", str(success_of(results))),
        ("grasped", "" if grasped is None else str(grasped)),
        ("failed", _counted(reasons_of(results))),
        ("conditions", conditions(found)),
        ("no action", _counted(totals_of(result.refusals for result in results))),
        ("guard limited", _counted(totals_of(result.limited for result in results))),
    ]
    if latency is not None:
        spread = f"{latency['p50']:.0f} ms by median, 95 % within {latency['p95']:.0f}, at most {latency['max']:.0f}"
        rows.append(("latency", spread))
    rows += [("note", str(note)) for note in about["notes"]]
    if not found.is_complete:
        rows.append(("interrupted", f"{len(results)} of {found.scenes} scenes have ended"))
    return [(label, text) for label, text in rows if text]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
