"""Corrections on the built-in tabletop: roll a policy out, go back to where it erred, let the expert do the rest.

A folder of corrections holds

    corrections.json      what was rolled out and how, every scene's outcome, every takeover and what became of it
    episode_0000/ ...     what the expert did from a takeover on, in the robot's recording format

The simulator gives equal states for equal commands, so a state that the policy reached is reached again by its
commands. An episode begins with that state: what the policy did before is left out, since its commands are what is to
be unlearned, and a chunk of them would be the label. Every step is marked as an intervention. Takeovers after which the
expert fails too are counted, and not kept.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.closed_loop.evaluation import Evaluation, evaluate
from diffusion_policy.commands import command
from diffusion_policy.dagger.moments import takeovers
from diffusion_policy.dagger.watching import Trace, WatchedSimulator, tabletop_of, tips_of
from diffusion_policy.env_runner.document import check_same
from diffusion_policy.env_runner.results import SceneResult, Share, reasons_of, success_of
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.sim.camera import Camera
from diffusion_policy.sim.expert import plan_on
from diffusion_policy.sim.recorder import record
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.sim.tabletop_env import TabletopEnv
from diffusion_policy.sim.tasks import Progress
from diffusion_policy.storage import write_json

DOCUMENT = "corrections.json"
DOCUMENT_VERSION = 1
_AT_ONCE = 16  # scenes after which what they gave is written down
_REPLAYED = (16, 9)  # pixels of frames that nobody looks at
_SAME_PLACE = 1e-9  # meters


class CorrectionError(WorkspaceError):
    """Corrections cannot be collected here, or not be gone on with."""


@dataclass(frozen=True)
class Collection:
    """What is collected.

    Attributes:
        evaluation: the policy's rollouts; its simulator must be the built-in tabletop.
        variation: of the expert, as in demonstrations.
        per_scene: takeovers of one scene at most.
        first_number: of the episodes.
    """

    evaluation: Evaluation
    variation: float = 0.3
    per_scene: int = 2
    first_number: int = 0

    def check(self) -> None:
        """Raises WorkspaceError: settings with which nothing can be collected."""
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
    """A folder's document in memory.

    Attributes:
        about: of the rollouts and the takeovers, as plain data.
        scenes: how many were asked for.
        results: those that ended.
        corrections: a takeover each: scene, seed, step, why, episode (None: the expert failed too) and its frames.
    """

    about: dict[str, Any]
    scenes: int
    results: list[SceneResult]
    corrections: list[dict[str, Any]]

    @property
    def is_complete(self) -> bool:
        """Whether every scene was rolled out, and what it gave recorded."""
        return len(self.results) == self.scenes

    @property
    def episodes(self) -> list[dict[str, Any]]:
        """The takeovers that became episodes."""
        return [taken for taken in self.corrections if taken["episode"] is not None]

    @property
    def success(self) -> Share:
        """Of the policy that was rolled out."""
        return success_of(self.results)

    @property
    def reasons(self) -> dict[str, int]:
        """Why takeovers happened, of those that became episodes."""
        return dict(Counter(taken["why"] for taken in self.episodes).most_common())

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``read_collected`` reads it."""
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
    """What was collected in a folder.

    Raises:
        CorrectionError: there is nothing, or something else.
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
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Collected:
    """Roll a checkpoint out and record what the expert does where it failed or hesitated.

    Args:
        checkpoint: of 8-D actions.
        collection: see ``Collection``.
        folder: made if absent; must be empty, unless an interrupted collection is gone on with.
        resume: go on with the scenes that are not done.
        show: told (scenes done, scenes in all).

    Raises:
        CorrectionError: the folder holds something else, or the same with other settings.
        WorkspaceError: checkpoint, simulator and settings do not fit together.
    """
    collection.check()
    watched = WatchedSimulator.over(collection.evaluation.simulator)
    wanted = collection.evaluation.n_scenes
    found = _begun(folder, wanted, resume=resume)
    show(len(found.results) if found else 0, wanted)
    while found is None or len(found.results) < wanted:
        done = found.results if found else []
        part = replace(collection.evaluation, simulator=watched, n_scenes=min(len(done) + _AT_ONCE, wanted))
        ran = evaluate(checkpoint, part, done=done)
        about = {**ran.about, "variation": collection.variation, "per_scene": collection.per_scene}
        if found is None:
            found = Collected(about, wanted, [], [])
            write_json(folder / DOCUMENT, found.to_json())
        _check_same(about, found.about, folder / DOCUMENT)
        new = sorted(ran.results[len(done) :], key=lambda result: result.scene)
        _take_over(new, watched, collection, folder, found)
        show(len(found.results), wanted)
    return found


def _check_same(about: Mapping[str, Any], earlier: Mapping[str, Any], where: Path) -> None:
    """Refuse to go on with what was collected otherwise; ResultError or CorrectionError names what differs."""
    check_same(about, earlier, str(where))
    for key in ("variation", "per_scene"):
        if earlier.get(key) != about[key]:
            raise CorrectionError(
                f"{where} was made with another {key}: {earlier.get(key)!r}; here it is {about[key]!r}"
            )


def _begun(folder: Path, scenes: int, *, resume: bool) -> Collected | None:
    if resume and (folder / DOCUMENT).is_file():
        found = read_collected(folder)
        if found.scenes != scenes:
            raise CorrectionError(f"{folder / DOCUMENT} is of {found.scenes} scenes; {scenes} are asked for")
        return found
    if not resume and folder.exists() and any(folder.iterdir()):
        raise CorrectionError(f"{folder} is not empty; name another folder, or go on with --resume")
    folder.mkdir(parents=True, exist_ok=True)
    return None


def _take_over(
    results: list[SceneResult], watched: WatchedSimulator, collection: Collection, folder: Path, found: Collected
) -> None:
    """Record the takeovers of scenes; each scene is written down once its episodes are there."""
    for result in results:
        trace = watched.traces[result.seed]
        taken: list[dict[str, Any]] = []
        number = collection.first_number + len(found.episodes)
        for moment in takeovers(trace, succeeded=result.success, at_most=collection.per_scene):
            frames = _record_takeover(trace, moment.step, result.seed, number, collection, folder)
            taken.append(
                {
                    "scene": result.scene,
                    "seed": result.seed,
                    "step": moment.step,
                    "why": moment.why,
                    "episode": f"episode_{number:04d}" if frames else None,
                    "frames": frames,
                }
            )
            number += bool(frames)
        found.results.append(result)
        found.corrections += taken
        write_json(folder / DOCUMENT, found.to_json())


def _record_takeover(trace: Trace, step: int, seed: int, number: int, collection: Collection, folder: Path) -> int:
    """Record what the expert does after ``step`` commands of the policy; returns the frames, 0 if it fails too."""
    simulator = collection.evaluation.simulator
    blind = replace(simulator, env={**simulator.env, "image_size": list(_REPLAYED)}).make()
    try:
        tabletop, progress = _replayed(tabletop_of(blind), trace, step, seed)
        commands = plan_on(tabletop, np.random.default_rng([seed, step]), collection.variation)
        camera = Camera(tabletop.scene, tuple(simulator.env["image_size"]))
        episode = folder / f"episode_{number:04d}"
        provenance = {"correction": {"seed": seed, "step": step}}
        shutil.rmtree(episode, ignore_errors=True)  # of a collection that was killed before it was written down
        done = record(episode, number, tabletop, progress, commands, camera, provenance=provenance, intervention=True)
    finally:
        blind.close()
    return len(commands) if done else 0


def _replayed(env: TabletopEnv, trace: Trace, step: int, seed: int) -> tuple[Tabletop, Progress]:
    """The tabletop after ``step`` commands of an episode, and what was reached until then.

    Raises:
        CorrectionError: it is not where it was.
    """
    env.reset(seed=seed)
    for action in trace.actions[:step]:
        env.step(action)
    was = trace.seen[step : step + 1]
    if was and np.abs(was[0].tips - tips_of(env.tabletop)).max() > _SAME_PLACE:
        raise CorrectionError(f"scene {seed}: the same commands led elsewhere; the simulator is not repeatable here")
    return env.tabletop, env.progress
