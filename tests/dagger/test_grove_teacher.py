"""Corrections in the grove: recordings of the states that the policy met, with the expert's actions in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from vpt_factory import tiny_policy

from diffusion_policy.closed_loop.evaluation import Evaluation
from diffusion_policy.dagger import corrections
from diffusion_policy.dagger.corrections import Collected, Collection, CorrectionError, collect, read_collected
from diffusion_policy.dagger.grove_teacher import GroveTeacher
from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.installation import CONFIG
from diffusion_policy.minecraft.actions import BUTTONS
from diffusion_policy.minecraft.expert import Expert
from diffusion_policy.minecraft.grove import GroveEnv
from diffusion_policy.recording.minecraft import MinecraftRecordings

STEPS = 5


def grove() -> Simulator:
    return Simulator.load(CONFIG / "simulator" / "grove.yaml", max_steps=STEPS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "tiny.weights"
    tensors = tiny_policy().state_dict().items()
    torch.save({name: tensor for name, tensor in tensors if not name.startswith("normalizer.")}, path)
    return path


def small(**changes: object) -> Collection:
    return Collection(Evaluation(grove(), 2, seed=300_000, threads=1), **{"first_number": 1000, **changes})


@pytest.fixture(scope="module")
def collected(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Collected]:
    folder = tmp_path_factory.mktemp("corrections")
    return folder, collect(weights, small(), folder)


def test_labels_are_the_expert_s_in_the_policy_s_states(tmp_path: Path) -> None:
    """The world follows the policy's actions; each state is labeled with the expert's action in it."""
    teacher = GroveTeacher(grove(), tmp_path, variation=0.5)
    played, rng = teacher.simulator.make(), np.random.default_rng(0)
    alone, expert = GroveEnv("log", "vpt", max_steps=STEPS), Expert(np.random.default_rng(7), 0.5)
    first, _ = played.reset(seed=7)
    frames, labels = [first["pov"]], []
    alone.reset(seed=7)
    for _ in range(STEPS):
        taken = np.concatenate([rng.integers(0, 2, len(BUTTONS)), rng.uniform(-9, 9, 2)]).astype(np.float32)
        action = expert.act(alone.world)
        labels.append([*(action[name] for name in BUTTONS), *action["camera"]])
        frames.append(played.step(taken)[0]["pov"])
        alone.step(taken)
    (correction,) = teacher.correct(SceneResult(0, 7, success=False, steps=STEPS, reason="late"), 12)
    assert correction == {
        "scene": 0, "seed": 7, "step": 0, "why": "labeled by the expert", "episode": "episode_0012", "frames": STEPS
    }  # fmt: skip
    teacher.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode_0012.jsonl", "episode_0012.mp4"]
    recordings = MinecraftRecordings(tmp_path)
    (path,) = recordings.find()
    recording = recordings.open(path)
    np.testing.assert_allclose(recording.action, labels, atol=1e-9)
    assert recording.number == 12
    assert not np.array_equal(frames[0], frames[-1])


def test_every_scene_is_a_recording(collected: tuple[Path, Collected]) -> None:
    folder, found = collected
    assert found.is_complete
    assert [(taken["episode"], taken["frames"]) for taken in found.episodes] == [
        ("episode_1000", STEPS), ("episode_1001", STEPS),
    ]  # fmt: skip
    names = [f"episode_{number}.{suffix}" for number in (1000, 1001) for suffix in ("jsonl", "mp4")]
    assert sorted(path.name for path in folder.iterdir()) == ["corrections.json", *names]
    assert read_collected(folder).corrections == found.corrections
    assert found.about["labels"] == "every step"


def test_interrupted_it_continues_to_the_same(
    collected: tuple[Path, Collected], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct = GroveTeacher.correct

    def interrupted(self: GroveTeacher, result: SceneResult, number: int) -> list[dict[str, object]]:
        if result.scene == 1:
            raise KeyboardInterrupt
        return correct(self, result, number)

    monkeypatch.setattr(corrections, "_AT_ONCE", 2)
    monkeypatch.setattr(GroveTeacher, "correct", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(weights, small(), tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["corrections.json", "episode_1000.jsonl", "episode_1000.mp4"], "nothing half written"
    monkeypatch.setattr(GroveTeacher, "correct", correct)
    again = collect(weights, small(), tmp_path, resume=True)
    assert again.corrections == collected[1].corrections
    for taken in again.episodes:
        lines = f"{taken['episode']}.jsonl"
        assert (tmp_path / lines).read_text() == (collected[0] / lines).read_text()


def test_another_expert_does_not_continue(collected: tuple[Path, Collected], weights: Path, tmp_path: Path) -> None:
    document = collected[1].to_json()
    (tmp_path / "corrections.json").write_text(json.dumps({**document, "scenes": [], "corrections": []}))
    with pytest.raises(CorrectionError, match=r"was made with another variation: 0\.3; here it is 1\.0"):
        collect(weights, small(variation=1.0), tmp_path, resume=True)
