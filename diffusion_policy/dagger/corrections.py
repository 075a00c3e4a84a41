"""Corrections on the built-in tabletop: roll a policy out, return to where it erred, let the expert complete the task.

A folder of corrections holds

    corrections.json      the settings of the rollouts, every scene's outcome, every takeover and its result
    episode_0000/ ...     the expert's actions from a takeover on, in the robot's recording format

The simulator is deterministic, so a state that the policy reached is reproduced by its commands. An episode begins with
that state. The policy's own steps before it are left out: their commands, which are to be unlearned, would become
labels. Every step is marked as an intervention. Takeovers after which the expert fails, too, are counted and not kept.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.closed_loop.evaluation import Evaluation, evaluate
from diffusion_policy.commands import command
from diffusion_policy.dagger.moments import takeovers
from diffusion_policy.dagger.watching import Trace, TracedSimulator, tabletop_of, tips_of
from diffusion_policy.env_runner.document import check_same
from diffusion_policy.env_runner.results import SceneResult, Share, reasons_of, success_of
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.sim.camera import Camera
from diffusion_policy.sim.expert import plan_on
from diffusion_policy.sim.recorder import record
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.sim.tabletop_env import TabletopEnv
from diffusion_policy.sim.tasks import Progress as TaskProgress
from diffusion_policy.storage import write_json

DOCUMENT = "corrections.json"
DOCUMENT_VERSION = 1
_AT_ONCE = 16  # scenes between two writes of the document
_REPLAYED = (16, 9)  # pixels of frames that are not used
_SAME_POSITION = 1e-9  # meters


class CorrectionError(WorkspaceError):
    """Corrections cannot be collected, or an interrupted collection cannot be resumed."""


@dataclass(frozen=True)
class Collection:
    """Settings of a collection.

    Attributes:
        evaluation: the policy's rollouts; its simulator must be the built-in tabletop.
        variation: variation of the expert, as in demonstrations.
        per_scene: largest number of takeovers in a scene.
        first_number: number of the first episode.
    """

    evaluation: Evaluation
    variation: float = 0.3
    per_scene: int = 2
    first_number: int = 0

    def check(self) -> None:
        """Checks the settings.

        Raises:
            WorkspaceError: a setting is out of range, or the simulator is not the built-in tabletop.
        """
        for name, least in (("per_scene", 1), ("first_number", 0)):
            if getattr(self, name) < least:
                raise CorrectionError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if not 0 <= self.variation <= 1:
            raise CorrectionError(f"variation is {self.variation}; expected 0 to 1")
        env = self.evaluation.simulator.make()
        try:
            tabletop_of(env)
        finally:
            env.close()


@dataclass
class Collected:
    """The document of a folder of corrections.

    Attributes:
        about: settings of the rollouts and the takeovers, as plain data.
        scenes: how many scenes were requested.
        results: of the scenes that have ended.
        corrections: one entry for each takeover: scene, seed, step, why, episode (None: the expert failed, too) and
            number of frames.
    """

    about: dict[str, Any]
    scenes: int
    results: list[SceneResult]
    corrections: list[dict[str, Any]]

    @property
    def is_complete(self) -> bool:
        """Whether every scene was rolled out, and its corrections recorded."""
        return len(self.results) == self.scenes

    @property
    def episodes(self) -> list[dict[str, Any]]:
        """The takeovers that became episodes."""
        return [taken for taken in self.corrections if taken["episode"] is not None]

    @property
    def success(self) -> Share:
        """The success rate of the policy that was rolled out."""
        return success_of(self.results)

    @property
    def reasons(self) -> dict[str, int]:
        """Counts of the reasons of those takeovers that became episodes."""
        return dict(Counter(taken["why"] for taken in self.episodes).most_common())

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; ``read_collected`` reads it."""
        return {
            "format": "corrections",
            "version": DOCUMENT_VERSION,
            **self.about,
            "scenes_asked": self.scenes,
            "interrupted": not self.is_complete,
            "success": self.success.to_json(),
            "failures": reasons_of(self.results),
            "episodes": len(self.episodes),
            "frames": sum(taken["frames"] for taken in self.episodes),
            "expert_failed": len(self.corrections) - len(self.episodes),
            "reasons": self.reasons,
            "scenes": [asdict(result) for result in self.results],
            "corrections": self.corrections,
        }


def read_collected(folder: Path) -> Collected:
    """Reads the document of a folder of corrections.

    Raises:
        CorrectionError: there is no document, or it is not one of corrections.
    """
    path = folder / DOCUMENT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        made = command("collect_corrections", "CKPT", "--output", folder)
        raise CorrectionError(f"{path}: cannot be read as JSON ({error}); it is made by: {made}") from error
    if not isinstance(found, Mapping) or found.get("format") != "corrections":
        raise CorrectionError(f"{path}: holds no corrections")
    if found.get("version") != DOCUMENT_VERSION:
        raise CorrectionError(f"{path}: version {found.get('version')}; this code reads {DOCUMENT_VERSION}")
    results = [SceneResult.read(entry, str(path)) for entry in found["scenes"]]
    return Collected(dict(found), found["scenes_asked"], results, list(found["corrections"]))


def collect(
    checkpoint: Path,
    collection: Collection,
    folder: Path,
    *,
    resume: bool = False,
    show: Progress = no_progress,
) -> Collected:
    """Rolls a checkpoint out, and records the expert's corrections where it failed or hesitated.

    Args:
        checkpoint: a policy of 8-D actions.
        collection: the settings.
        folder: created if absent; must be empty, unless an interrupted collection is resumed.
        resume: continue with the scenes that are missing.
        show: called with (scenes done, scenes in total).

    Raises:
        CorrectionError: the folder holds something else, or a collection with other settings.
        WorkspaceError: checkpoint, simulator and settings do not match.
    """
    collection.check()
    traced = TracedSimulator.over(collection.evaluation.simulator)
    wanted = collection.evaluation.n_scenes
    found = _open_folder(folder, wanted, resume=resume)
    show(len(found.results) if found else 0, wanted)
    while found is None or len(found.results) < wanted:
        done = found.results if found else []
        part = replace(collection.evaluation, simulator=traced, n_scenes=min(len(done) + _AT_ONCE, wanted))
        ran = evaluate(checkpoint, part, done=done)
        about = {**ran.about, "variation": collection.variation, "per_scene": collection.per_scene}
        if found is None:
            found = Collected(about, wanted, [], [])
            write_json(folder / DOCUMENT, found.to_json())
        _check_same(about, found.about, folder / DOCUMENT)
        new = sorted(ran.results[len(done) :], key=lambda result: result.scene)
        _take_over(new, traced, collection, folder, found)
        show(len(found.results), wanted)
    return found


def _check_same(about: Mapping[str, Any], earlier: Mapping[str, Any], where: Path) -> None:
    """Refuses to resume a collection with other settings; ResultError or CorrectionError names what differs."""
    check_same(about, earlier, str(where))
    for key in ("variation", "per_scene"):
        if earlier.get(key) != about[key]:
            raise CorrectionError(
                f"{where} was made with another {key}: {earlier.get(key)!r}; here it is {about[key]!r}"
            )


def _open_folder(folder: Path, scenes: int, *, resume: bool) -> Collected | None:
    if resume and (folder / DOCUMENT).is_file():
        found = read_collected(folder)
        if found.scenes != scenes:
            raise CorrectionError(f"{folder / DOCUMENT} is of {found.scenes} scenes; {scenes} are requested")
        return found
    if not resume and folder.exists() and any(folder.iterdir()):
        raise CorrectionError(f"{folder} is not empty; name another folder, or continue with --resume")
    folder.mkdir(parents=True, exist_ok=True)
    return None


def _take_over(
    results: list[SceneResult], traced: TracedSimulator, collection: Collection, folder: Path, found: Collected
) -> None:
    """Records the takeovers of scenes; a scene enters the document once its episodes are written."""
    for result in results:
        trace = traced.traces[result.seed]
        taken: list[dict[str, Any]] = []
        number = collection.first_number + len(found.episodes)
        for takeover in takeovers(trace, succeeded=result.success, at_most=collection.per_scene):
            frames = _record_takeover(trace, takeover.step, result.seed, number, collection, folder)
            taken.append(
                {
                    "scene": result.scene,
                    "seed": result.seed,
                    "step": takeover.step,
                    "why": takeover.why,
                    "episode": f"episode_{number:04d}" if frames else None,
                    "frames": frames,
                }
            )
            number += bool(frames)
        found.results.append(result)
        found.corrections += taken
        write_json(folder / DOCUMENT, found.to_json())


def _record_takeover(trace: Trace, step: int, seed: int, number: int, collection: Collection, folder: Path) -> int:
    """Records the expert from the state after ``step`` commands of the policy; returns the frames, 0 if it fails."""
    simulator = collection.evaluation.simulator
    env = replace(simulator, env={**simulator.env, "image_size": list(_REPLAYED)}).make()
    try:
        tabletop, progress = _replayed(tabletop_of(env), trace, step, seed)
        commands = plan_on(tabletop, np.random.default_rng([seed, step]), collection.variation)
        camera = Camera(tabletop.scene, tuple(simulator.env["image_size"]))
        episode = folder / f"episode_{number:04d}"
        provenance = {"correction": {"seed": seed, "step": step}}
        shutil.rmtree(episode, ignore_errors=True)  # left by a collection that was killed before it wrote its document
        done = record(episode, number, tabletop, progress, commands, camera, provenance=provenance, intervention=True)
    finally:
        env.close()
    return len(commands) if done else 0


def _replayed(env: TabletopEnv, trace: Trace, step: int, seed: int) -> tuple[Tabletop, TaskProgress]:
    """Returns the tabletop after ``step`` commands of an episode, and the progress until then.

    Raises:
        CorrectionError: the replayed state differs from the recorded one.
    """
    env.reset(seed=seed)
    for action in trace.actions[:step]:
        env.step(action)
    was = trace.states[step : step + 1]
    if was and np.abs(was[0].tips - tips_of(env.tabletop)).max() > _SAME_POSITION:
        raise CorrectionError(f"scene {seed}: the same commands led elsewhere; the simulator is not repeatable here")
    return env.tabletop, env.progress
