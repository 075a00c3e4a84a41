"""A checkpoint knows its training episodes, whatever became of the dataset since, or states that it does not.

CHANGES turn the training dataset into another one; CONSUMERS evaluate the checkpoint on it and return what they report
about its episodes. A new consumer of held-out episodes belongs in CONSUMERS.
"""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from trajectory_factory import write_trajectory

from diffusion_policy.checkpoint import read_checkpoint, write_checkpoint
from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dataset.image_codecs import image_codec
from diffusion_policy.dataset.joined_datasets import JoinedDatasets
from diffusion_policy.dataset.replay_buffer import ArrayLayout, ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.dataset.split import WORDS, EpisodeIdentity, Split, Status, split_of
from diffusion_policy.diagnose.doctor import examine
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.evaluate.episode_choice import choose_episodes
from diffusion_policy.evaluate.open_loop_report import evaluate_open_loop
from diffusion_policy.evaluate.recorded_inference import Sampling, run_recorded_inference
from diffusion_policy.evaluate.writing import EvaluateError
from diffusion_policy.report.report_page import Sources, make_report
from diffusion_policy.run_log import read_log
from diffusion_policy.serve.candidates import Candidate
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.tuning import Budget, tune
from diffusion_policy.spec import POSE, POSE_GRIPPER
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

SIZE = (tiny_run.WIDTH, tiny_run.HEIGHT)
TRAINED_ON = tuple(range(6))  # seeds of recordings
RUN = ("training.num_epochs=1", "training.sample_every=0", "training.max_train_steps=1", "checkpoint.topk.k=0")


def record(folder: Path, seeds: Sequence[int]) -> Path:
    """Recordings, numbered in this order, each identified by its seed."""
    for number, seed in enumerate(seeds):
        write_trajectory(folder, number, 12, SIZE, seed=seed)
    return folder


def converted(folder: Path, seeds: Sequence[int], **options: object) -> Path:
    out = folder / "set.zarr"
    shutil.rmtree(folder / "recordings", ignore_errors=True)
    settings = {"resolution": SIZE, **options}
    convert(ConversionSettings(record(folder / "recordings", seeds), out, **settings))  # type: ignore[arg-type]
    return out


@dataclass
class Trained:
    """A checkpoint, the folder of its dataset, and the seeds of the recordings that were held out."""

    checkpoint: Path
    folder: Path
    held_out: frozenset[int]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    dataset = converted(folder, TRAINED_ON)
    run = TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *RUN), folder / "run")
    run.run()
    held_out = np.flatnonzero(run._data.dataset.validation_episodes)
    assert len(held_out) == 2
    return Trained(folder / "run" / "checkpoints" / "latest.ckpt", folder, frozenset(held_out.tolist()))


def without(path: Path, out: Path, *parts: str) -> Path:
    """A checkpoint that lacks parts of its provenance, like those of other programs and versions."""
    found = read_checkpoint(path)
    write_checkpoint(
        out,
        cfg=found.cfg,
        state_dicts={name: found.state_dicts[name] for name in ("model", "ema_model")},
        pickles=found.pickles,
        provenance={name: value for name, value in (found.provenance or {}).items() if name not in parts},
    )
    return out


def bare(dataset: Path, out: Path, shift: float = 0.0, clock: bool = True) -> Path:
    """The same numbers as written by another program, without attributes; `shift` moves the robot's base."""
    source = ReplayBuffer.open(dataset)
    layouts = {
        "image": image_layout(*SIZE),
        "robot_eef_pose": low_dim_layout(POSE),
        "robot_gripper_state": low_dim_layout(("gripper",)),
        "action": low_dim_layout(POSE_GRIPPER),
        **({"timestamp": ArrayLayout((), np.float64)} if clock else {}),
    }
    buffer = ReplayBuffer.create(out, layouts)
    for low, high in zip([0, *source.episode_ends[:-1]], source.episode_ends, strict=True):
        rows = {key: np.array(source[key][low:high]) for key in layouts}
        for key in ("robot_eef_pose", "action"):
            rows[key][:, 0] += np.float32(shift)
        buffer.append(rows)
    return out


# Each returns the dataset (or several) and the seeds of its episodes in order.
Change = Callable[[Trained, Path], tuple[Path | list[Path], Sequence[int]]]


def appended(trained: Trained, folder: Path) -> tuple[Path, Sequence[int]]:
    shutil.copytree(trained.folder / "set.zarr", folder / "set.zarr")
    return converted(folder, (*TRAINED_ON, 20, 21, 22, 23), append=True), (*TRAINED_ON, 20, 21, 22, 23)


def overwritten(trained: Trained, folder: Path) -> tuple[Path, Sequence[int]]:
    shutil.copytree(trained.folder / "set.zarr", folder / "set.zarr")
    return converted(folder, (20, 3, 4, 21, 5, 0), overwrite=True), (20, 3, 4, 21, 5, 0)


CHANGES: dict[str, Change] = {
    "as it was": lambda trained, folder: (trained.folder / "set.zarr", TRAINED_ON),
    "appended to": appended,
    "overwritten": overwritten,
    "in another order": lambda trained, folder: (converted(folder, TRAINED_ON[::-1]), TRAINED_ON[::-1]),
    "converted otherwise": lambda trained, folder: (
        converted(folder, TRAINED_ON, codec=image_codec("jpeg"), quaternion_sign="keep"),
        TRAINED_ON,
    ),
    "at another size": lambda trained, folder: (
        converted(folder, (20, *TRAINED_ON), resolution=(20, 18)),
        (20, *TRAINED_ON),
    ),
    "joined": lambda trained, folder: (
        [converted(folder, (20, 21, 2)), trained.folder / "set.zarr"],
        (20, 21, 2, *TRAINED_ON),
    ),
    "a subset": lambda trained, folder: (
        converted(folder, TRAINED_ON, start_episode=2, max_episodes=3),
        TRAINED_ON[2:5],
    ),
    "by another program": lambda trained, folder: (bare(trained.folder / "set.zarr", folder / "set.zarr"), TRAINED_ON),
    "by another program, without a clock": lambda trained, folder: (
        bare(trained.folder / "set.zarr", folder / "set.zarr", clock=False),
        TRAINED_ON,
    ),
    "of other recordings": lambda trained, folder: (converted(folder, (20, 21, 22)), (20, 21, 22)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_episodes_of_a_training_are_recognized(trained: Trained, tmp_path: Path, change: str) -> None:
    dataset, seeds = CHANGES[change](trained, tmp_path)
    known: dict[int, Status] = {s: "held out" if s in trained.held_out else "trained" for s in TRAINED_ON}
    expected = [known.get(seed, "unseen") for seed in seeds]
    opened, checkpoint = JoinedDatasets(dataset), read_checkpoint(trained.checkpoint)
    assert list(choose_episodes(opened, checkpoint, "all").statuses) == expected
    choice = choose_episodes(opened, checkpoint)
    wanted = "held out" if "held out" in expected else "unseen"
    assert [seeds[number] for number in choice.numbers] == [
        s for s, status in zip(seeds, expected, strict=True) if status == wanted
    ]
    assert set(choice.statuses) == {wanted}
    assert WORDS[wanted] in choice.note
    assert "may have been" not in choice.note


def test_where_it_is_unknown_nothing_is_called_held_out(trained: Trained, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained.checkpoint)
    moved = bare(trained.folder / "set.zarr", tmp_path / "moved.zarr", shift=0.1)
    choice = choose_episodes(JoinedDatasets(moved), checkpoint)
    assert (set(choice.statuses), len(choice.numbers)) == ({"unknown"}, 6)
    assert choice.note.endswith("may have been trained on: the episodes of this dataset cannot be recognized")
    old = read_checkpoint(without(trained.checkpoint, tmp_path / "old.ckpt", "split"))
    choice = choose_episodes(JoinedDatasets(trained.folder / "set.zarr"), old)
    assert set(choice.numbers) == trained.held_out, "those that its config would hold out"
    assert choice.note.endswith("may have been trained on: old.ckpt does not record which episodes it was trained on")
    both = JoinedDatasets([converted(tmp_path, (20, 21)), trained.folder / "set.zarr"])
    drawn = choose_episodes(both, old).numbers
    assert {number - 2 for number in drawn if number >= 2} == trained.held_out, (
        "drawn from each dataset, as in training"
    )


def test_a_dataset_of_trained_episodes_has_nothing_held_out(trained: Trained, tmp_path: Path) -> None:
    seeds = [seed for seed in TRAINED_ON if seed not in trained.held_out]
    dataset, checkpoint = JoinedDatasets(converted(tmp_path, seeds)), read_checkpoint(trained.checkpoint)
    with pytest.raises(EvaluateError, match=r"all 4 episodes of .* were trained on.*--episodes all"):
        choose_episodes(dataset, checkpoint)
    assert choose_episodes(dataset, checkpoint, [1, 0]).note == "episodes 1, 0 trained on"


@pytest.mark.parametrize("part", ["trained", "held_out", "version", "entry"])
def test_a_damaged_split_is_refused(trained: Trained, part: str) -> None:
    provenance = dict(read_checkpoint(trained.checkpoint).provenance or {})
    split = dict(provenance["split"])
    split[part] = [{"name": 3}] if part == "trained" else 7
    if part == "entry":
        split["held_out"] = [{**split["held_out"][0], "steps": [1]}]
    with pytest.raises(WorkspaceError, match=r"a.ckpt: its split|a.ckpt: an episode of its split"):
        split_of({"split": split}, "a.ckpt")


def test_an_adapted_checkpoint_knows_the_episodes_of_its_source(trained: Trained) -> None:
    source = read_checkpoint(trained.checkpoint).provenance
    for depth in range(1, 4):
        source = {"adaptation": {"source": {"name": "a", "provenance": source}}}
        found = split_of(source, "a.ckpt")
        assert found is not None, depth
        assert len(found.held_out) == 2
    assert split_of({"adaptation": {}}, "a.ckpt") is None
    assert split_of(None, "a.ckpt") is None


def test_parts_of_one_recording_are_the_same_where_their_steps_overlap() -> None:
    def part(name: str, start: int, end: int) -> EpisodeIdentity:
        return EpisodeIdentity(name, f"m{start}", recording="r", steps=(start, end))

    split = Split((part("a", 0, 50),), (part("a", 50, 90),))
    asked = [part("b", 10, 20), part("b", 60, 70), part("b", 40, 60), part("b", 95, 99)]
    assert split.statuses([asked]) == ["trained", "held out", "trained", "unseen"]


# What each reports about its episodes: statuses, and text for people.
def open_loop(checkpoint: Path, dataset: Path, folder: Path) -> tuple[set[str], str]:
    report = evaluate_open_loop(checkpoint, dataset, sampling=Sampling(steps=1), samples=1)
    document = folder / "errors.json"
    document.write_text(json.dumps({"reports": [report.to_json()], "comparison": {}}))
    _, page = make_report(Sources(open_loop=(document,)))
    assert report.to_json()["split"]["note"] in page
    return set(report.to_json()["split"]["episodes"].values()), page


def offline_inference(checkpoint: Path, dataset: Path, folder: Path) -> tuple[set[str], str]:
    logs = run_recorded_inference(checkpoint, dataset, folder / "logs", steps=1, stride=4)
    examined = examine(logs=logs).groups["log"]
    evidence = [finding.evidence for finding in examined if finding.code == "log-split"]
    assert len(evidence) == len(logs)
    return {read_log(path).meta["split"] for path in logs}, " ".join(evidence)


def tuning(checkpoint: Path, dataset: Path, folder: Path) -> tuple[set[str], str]:
    settings = EngineSettings(weights="model")
    report = tune(checkpoint, dataset, [Candidate("ddim", 1)], Budget(), settings, stride=6)
    return set(report.to_json()["split"]["episodes"].values()), str(report.table().caption)


def doctor(checkpoint: Path, dataset: Path, folder: Path) -> tuple[set[str], str]:
    (finding,) = [f for f in examine([dataset], checkpoint).findings if f.code == "split"]
    assert finding.severity in ("ok", "note")
    found = {status for status, words in WORDS.items() if re.search(rf"\d+ {words}", finding.evidence)}
    return found, finding.evidence


CONSUMERS = {"open loop": open_loop, "offline inference": offline_inference, "tuning": tuning, "doctor": doctor}


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_consumer_says_what_it_evaluated_on(trained: Trained, tmp_path: Path, consumer: str) -> None:
    dataset, _ = appended(trained, tmp_path)
    statuses, evidence = CONSUMERS[consumer](trained.checkpoint, dataset, tmp_path)
    assert "held out" in statuses
    assert consumer == "doctor" or statuses == {"held out"}
    assert WORDS["held out"] in evidence
    old = without(trained.checkpoint, tmp_path / "old.ckpt", "split", "measured")
    statuses, evidence = CONSUMERS[consumer](old, dataset, tmp_path)
    assert statuses <= {"unknown"}
    assert WORDS["unknown"] in evidence
    assert WORDS["held out"] not in evidence
