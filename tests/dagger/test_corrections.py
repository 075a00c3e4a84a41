"""Corrections are recordings of the expert starting from states that the policy reached, and nothing else."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from closed_loop_factory import driver, tabletop
from evaluation_factory import write_tiny_checkpoint

from diffusion_policy import safe_pickle
from diffusion_policy.closed_loop.evaluation import Evaluation
from diffusion_policy.dagger import corrections, tabletop_teacher
from diffusion_policy.dagger.corrections import (
    Collected,
    Collection,
    CorrectionError,
    collect,
    read_collected,
)
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.spec import INTERVENTION
from diffusion_policy.trajectory import open_trajectory

REPOSITORY = Path(__file__).resolve().parents[2]
SCENES = 2


def door(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_door", REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("policy") / "latest.ckpt")


def small(**changes: object) -> Collection:
    evaluation = Evaluation(tabletop(max_steps=30), SCENES, seed=300_000, steps=2, threads=1)
    return Collection(evaluation, **{"first_number": 7, **changes})


@pytest.fixture(scope="module")
def collected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Collected]:
    folder = tmp_path_factory.mktemp("corrections")
    return folder, collect(checkpoint, small(), folder)


def test_every_takeover_is_reported_and_recorded(collected: tuple[Path, Collected]) -> None:
    folder, found = collected
    assert found.is_complete
    assert found.success.count == 0, "random weights"
    assert {taken["scene"] for taken in found.corrections} == set(range(SCENES))
    names = [taken["episode"] for taken in found.episodes]
    assert names == [f"episode_{7 + at:04d}" for at in range(len(names))]
    assert sorted(path.name for path in folder.iterdir()) == ["corrections.json", *names]
    document = json.loads((folder / "corrections.json").read_text())
    assert document["episodes"] == len(names) > 0
    assert document["frames"] == sum(open_trajectory(folder / name).n_steps for name in names)
    assert read_collected(folder).corrections == found.corrections


def test_episodes_begin_where_the_policy_was_and_are_marked(collected: tuple[Path, Collected]) -> None:
    folder, found = collected
    for taken in found.episodes:
        episode = open_trajectory(folder / taken["episode"])
        data = safe_pickle.load(
            (folder / taken["episode"] / "data.pkl").read_bytes(), allowed=safe_pickle.NUMPY_GLOBALS, where="test"
        )
        assert data[INTERVENTION].dtype == bool
        assert data[INTERVENTION].all()
        env = tabletop(max_steps=30, task="pick_and_place").make()
        env.reset(seed=taken["seed"])
        start = env.unwrapped.tabletop.pose[:3]
        env.close()
        moved = np.linalg.norm(episode.pose[0, :3] - start) > 0.01
        assert moved == (taken["step"] > 0), "not where every episode starts, but where the policy had come"
        step_lengths = np.linalg.norm(np.diff(episode.pose[:, :3], axis=0), axis=1)
        assert step_lengths.max() < 0.09, "it goes on from there without a jump"
        assert episode.action_gripper[-1] == 1


def test_equal_settings_give_equal_corrections(
    collected: tuple[Path, Collected], checkpoint: Path, tmp_path: Path
) -> None:
    folder, found = collected
    again = collect(checkpoint, small(), tmp_path / "again")
    assert again.corrections == found.corrections
    for taken in found.episodes:
        name = f"{taken['episode']}/data.pkl"
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("recorded", [pytest.param(0, marks=pytest.mark.exhaustive), 2])
def test_killed_after_any_takeover_it_continues_to_the_same(
    recorded: int,
    collected: tuple[Path, Collected],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, calls = tabletop_teacher.record, []

    def killed(*arguments, **options):
        calls.append(arguments[0])
        done = whole(*arguments, **options)
        if len(calls) > recorded:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(tabletop_teacher, "record", killed)
    monkeypatch.setattr(corrections, "_AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        collect(checkpoint, small(), tmp_path)
    monkeypatch.setattr(tabletop_teacher, "record", whole)
    again = collect(checkpoint, small(), tmp_path, resume=True)
    assert again.corrections == collected[1].corrections
    for taken in again.episodes:
        assert open_trajectory(tmp_path / taken["episode"]).n_steps == taken["frames"]


@pytest.mark.parametrize("words", [[], ["latest.ckpt", "--marked", "recordings"]])
def test_the_command_wants_one_source(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door("collect_corrections").main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "expected a checkpoint to roll out, or --marked DIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_collects_and_says_what(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--scenes", "1", "--referee", "kinematic", "--camera-size", "64", "36", "--per-scene", "1"]
    assert door("collect_corrections").main([str(checkpoint), "--output", str(tmp_path / "out"), *words]) == 0
    printed = capsys.readouterr().out
    assert "the policy: 0 of 1" in printed
    assert "1 corrections of " in printed
    assert open_trajectory(tmp_path / "out" / "episode_0000").n_steps > 40


def test_where_the_expert_fails_too_nothing_is_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tabletop_teacher.plan_on
    monkeypatch.setattr(tabletop_teacher, "plan_on", lambda *words: plan(*words)[:5])
    found = collect(checkpoint, small(), tmp_path)
    assert found.corrections
    assert not found.episodes
    assert [path.name for path in tmp_path.iterdir()] == ["corrections.json"]
    assert found.to_json()["expert_failed"] == len(found.corrections)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_scene": 0}, "per_scene is 0; expected 1 or more"),
        ({"first_number": -1}, "first_number is -1; expected 0 or more"),
        ({"variation": 2.0}, "variation is 2.0; expected 0 to 1"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, object], message: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CorrectionError, match=message):
        collect(checkpoint, small(**change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_simulator_has_no_expert(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="is a Driver; experts know the built-in tabletop and the grove"):
        collect(checkpoint, Collection(Evaluation(driver(), 1)), tmp_path)


def test_a_folder_of_something_else_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CorrectionError, match="is not empty; name another folder"):
        collect(checkpoint, small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_other_settings_do_not_continue(collected: tuple[Path, Collected], checkpoint: Path, tmp_path: Path) -> None:
    document = collected[1].to_json()
    (tmp_path / "corrections.json").write_text(json.dumps({**document, "scenes": [], "corrections": []}))
    with pytest.raises(WorkspaceError, match="was made with another per_scene: 2; here it is 1"):
        collect(checkpoint, small(per_scene=1), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read as JSON"), ('{"format": "closed_loop"}', "holds no corrections")]
)
def test_what_is_not_a_document_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "corrections.json").write_text(text)
    with pytest.raises(CorrectionError, match=message):
        read_collected(tmp_path)
