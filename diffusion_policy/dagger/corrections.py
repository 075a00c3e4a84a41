"""Corrections: roll a policy out, and let the expert of its simulator say what should have been done.

A folder of corrections holds

    corrections.json      the settings of the rollouts, every scene's outcome, every correction and its outcome
    episode_0000 ...      what the expert did or would have done, in the format of the simulator's demonstrations

On the tabletop the expert takes over where the policy failed or hesitated (``tabletop_teacher``), in the grove it
labels every state that the policy visits (``grove_teacher``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_policy.closed_loop.evaluation import Evaluation, evaluate
from diffusion_policy.commands import command
from diffusion_policy.dagger.grove_teacher import GroveTeacher
from diffusion_policy.dagger.tabletop_teacher import TabletopTeacher
from diffusion_policy.dagger.teacher import CorrectionError, Teacher
from diffusion_policy.dagger.watching import tabletop_of
from diffusion_policy.env_runner.document import check_same
from diffusion_policy.env_runner.results import SceneResult, Share, reasons_of, success_of
from diffusion_policy.minecraft.grove import GroveEnv
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.storage import write_json

__all__ = ["DOCUMENT", "Collected", "Collection", "CorrectionError", "collect", "read_collected"]

DOCUMENT = "corrections.json"
DOCUMENT_VERSION = 1
_AT_ONCE = 16  # scenes between two writes of the document


@dataclass(frozen=True)
class Collection:
    """Settings of a collection.

    Attributes:
        evaluation: the policy's rollouts, on the built-in tabletop or in the grove.
        variation: variation of the expert, as in demonstrations.
        per_scene: largest number of takeovers in a scene of the tabletop.
        first_number: number of the first episode.
    """

    evaluation: Evaluation
    variation: float = 0.3
    per_scene: int = 2
    first_number: int = 0

    def check(self) -> None:
        """Checks the settings.

        Raises:
            CorrectionError: a setting is out of range.
        """
        for name, least in (("per_scene", 1), ("first_number", 0)):
            if getattr(self, name) < least:
                raise CorrectionError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if not 0 <= self.variation <= 1:
            raise CorrectionError(f"variation is {self.variation}; expected 0 to 1")


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
        checkpoint: a policy that acts in the simulator.
        collection: the settings.
        folder: created if absent; must be empty, unless an interrupted collection is resumed.
        resume: continue with the scenes that are missing.
        show: called with (scenes done, scenes in total).

    Raises:
        CorrectionError: the folder holds something else, or a collection with other settings.
        WorkspaceError: checkpoint, simulator and settings do not match.
    """
    collection.check()
    teacher = _teacher(collection, folder)
    wanted = collection.evaluation.n_scenes
    found = _open_folder(folder, wanted, resume=resume)
    show(len(found.results) if found else 0, wanted)
    try:
        while found is None or len(found.results) < wanted:
            done = found.results if found else []
            part = replace(
                collection.evaluation, simulator=teacher.simulator, n_scenes=min(len(done) + _AT_ONCE, wanted)
            )
            ran = evaluate(checkpoint, part, done=done)
            about = {**ran.about, **teacher.settings}
            if found is None:
                found = Collected(about, wanted, [], [])
                write_json(folder / DOCUMENT, found.to_json())
            _check_same(about, found.about, teacher, folder / DOCUMENT)
            new = sorted(ran.results[len(done) :], key=lambda result: result.scene)
            _correct(new, teacher, collection, folder, found)
            show(len(found.results), wanted)
    finally:
        teacher.close()
    return found


def _check_same(about: Mapping[str, Any], earlier: Mapping[str, Any], teacher: Teacher, where: Path) -> None:
    """Refuses to resume a collection with other settings; ResultError or CorrectionError names what differs."""
    check_same(about, earlier, str(where))
    for key in teacher.settings:
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


def _teacher(collection: Collection, folder: Path) -> Teacher:
    """The expert of the collection's simulator.

    Raises:
        WorkspaceError: it has none.
    """
    simulator = collection.evaluation.simulator
    env = simulator.make()
    try:
        if isinstance(env.unwrapped, GroveEnv):
            return GroveTeacher(simulator, folder, collection.variation)
        tabletop_of(env)
    finally:
        env.close()
    return TabletopTeacher(simulator, folder, collection.variation, collection.per_scene)


def _correct(
    results: list[SceneResult], teacher: Teacher, collection: Collection, folder: Path, found: Collected
) -> None:
    """Records the corrections of scenes; a scene enters the document once its episodes are written."""
    for result in results:
        number = collection.first_number + len(found.episodes)
        found.corrections += teacher.correct(result, number)
        found.results.append(result)
        write_json(folder / DOCUMENT, found.to_json())
