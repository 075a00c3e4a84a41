"""A whole run of reinforcement learning: its folder, its checkpoint, its end, and what it refuses."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from ppo_factory import SIMULATOR, cue_policy, write_policy
from same_runs import assert_same_runs

from diffusion_policy.checkpoint import load_policy, read_checkpoint
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.ppo.learner import Learner
from diffusion_policy.report.sections import training_section
from diffusion_policy.run_folder.reading import open_run
from diffusion_policy.training_config import compose_training
from diffusion_policy.workspace.interruption import StopRequest
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.ppo_summary import PPOSummary
from diffusion_policy.workspace.train_vpt_ppo_workspace import TrainVPTPPOWorkspace

TINY = (
    "ppo.environments=3", "ppo.frames=6", "ppo.chunk_frames=3", "ppo.sequences_per_update=3", "ppo.window_episodes=8",
    "optimizer.learning_rate=0.01", "training.device=cpu", "training.iterations=4", "training.checkpoint_every=2",
    "training.threads=1", "ppo.value_warmup_iterations=1",
)  # fmt: skip


@pytest.fixture(scope="module", name="pretrained")
def pretrained_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("pretrained") / "cloned.ckpt")


def config(pretrained: Path | None, *overrides: str) -> DictConfig:
    named = [] if pretrained is None else [f"pretrained.path={pretrained}"]
    cfg = compose_training("train_ppo_from_vpt", [*TINY, *named, *overrides])
    OmegaConf.update(cfg, "simulator", SIMULATOR, merge=False)
    return cfg


def run(cfg: DictConfig, folder: Path) -> PPOSummary:
    return TrainVPTPPOWorkspace(cfg, folder).run()


@pytest.fixture(scope="module", name="straight")
def straight_run(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PPOSummary]:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    return folder, run(config(pretrained), folder)


def test_a_run_leaves_what_it_measured_and_a_checkpoint_that_opens_as_any_other(
    straight: tuple[Path, PPOSummary], pretrained: Path
) -> None:
    folder, summary = straight
    lines = read_metrics(folder / "logs.json.txt")
    assert [line["global_step"] for line in lines] == [4, 8, 12, 16]  # two passes over six chunks, three per update
    for name in ("success_share", "success_share_low", "episode_return", "explained_variance", "frames_per_second"):
        assert name in lines[-1]
    assert "kl_to_pretrained" not in lines[0], "the value head warmed up"
    assert lines[-1]["kl_coefficient"] == pytest.approx(0.2 * 0.9995**2)
    assert lines[-1]["kl_to_pretrained"] > 0
    assert lines[-1]["frames"] == 4 * 18
    opened = open_run(folder)
    assert (opened.status or {})["state"] == "finished"
    assert (opened.status or {})["epochs"] == 4
    checkpoint = read_checkpoint(folder / "checkpoints" / "latest.ckpt")
    policy = load_policy(checkpoint, "model")
    before = load_policy(pretrained, "model").state_dict()
    changed = [name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {name.split(".")[0] for name in changed} == {"net", "pi_head", "value_head"}
    assert (checkpoint.provenance or {})["pretrained"]["name"] == "cloned.ckpt"
    message = str(summary)
    assert "success in" in message
    assert "last iteration: KL to the pretrained policy (nats per frame)" in message
    assert f"evaluate_closed_loop.py {folder}/checkpoints/latest.ckpt --weights model" in message
    page = training_section(opened)
    assert set(page.figures) == {"kl", "value", "rate", "played"}
    assert Simulator.load(folder / "simulator.yaml") == Simulator.read(SIMULATOR)


def interrupt(monkeypatch: pytest.MonkeyPatch, call: int, what: Callable[[], None]) -> None:
    """Runs something before the updates of an iteration, counted from 1."""
    calls = []

    def learn(self: Learner, *given: Any) -> dict[str, float]:
        calls.append(given)
        if len(calls) == call:
            what()
        return original(self, *given)

    original = Learner.learn
    monkeypatch.setattr(Learner, "learn", learn)


def test_a_run_that_is_stopped_before_its_first_iteration_begins_there(
    straight: tuple[Path, PPOSummary], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StopRequest.__enter__
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "__enter__", lambda self: (original(self), signal.raise_signal(signal.SIGTERM))[0])
        assert "stopped by SIGTERM after 0 iterations" in str(run(config(pretrained), tmp_path / "run"))
    run(config(pretrained), tmp_path / "run")
    assert_same_runs(tmp_path / "run", straight[0])


@pytest.mark.parametrize("after", [1, 3])
def test_stopped_in_any_iteration_and_resumed_it_equals_one_never_stopped(
    after: int, straight: tuple[Path, PPOSummary], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, after, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped = run(config(pretrained), tmp_path / "run")
    assert stopped.interrupted == signal.SIGTERM
    assert f"stopped by SIGTERM after {after} iterations" in str(stopped)
    assert "training.resume=True" in stopped.next_command
    assert (open_run(tmp_path / "run").status or {})["state"] == "stopped"
    run(config(pretrained), tmp_path / "run")
    assert_same_runs(tmp_path / "run", straight[0])


def test_what_a_run_that_broke_off_did_after_its_last_checkpoint_is_done_again(
    straight: tuple[Path, PPOSummary], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall() -> None:
        raise RuntimeError("the power went")

    interrupt(monkeypatch, 4, fall)
    with pytest.raises(RuntimeError, match="the power went"):
        run(config(pretrained), tmp_path / "run")
    assert len(read_metrics(tmp_path / "run" / "logs.json.txt")) == 3
    assert (open_run(tmp_path / "run").status or {})["state"] == "failed"
    run(config(pretrained), tmp_path / "run")
    assert_same_runs(tmp_path / "run", straight[0])


def test_without_a_pretrained_policy_to_stay_near_none_is_kept(pretrained: Path, tmp_path: Path) -> None:
    run(config(pretrained, "ppo.kl_coefficient=0", "training.iterations=2"), tmp_path)
    assert "kl_to_pretrained" not in read_metrics(tmp_path / "logs.json.txt")[-1]


@pytest.mark.parametrize(
    ("named", "overrides", "message"),
    [
        (False, (), "pretrained.path is not set; name .weights of VPT or a checkpoint of train_vpt_bc"),
        (False, ("pretrained.path=absent.ckpt",), "absent.ckpt: no such file"),
        (True, ("ppo.frames=7",), "ppo.frames is 7 and ppo.chunk_frames 3; expected a multiple"),
        (True, ("pretrained.which=ema_model",), "holds no 'ema_model'"),
        (True, ("training.device=cuda:9",), "training.device=cuda:9"),
    ],
)
def test_what_cannot_start_is_refused(
    named: bool, overrides: tuple[str, ...], message: str, pretrained: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorkspaceError, match=message):
        run(config(pretrained if named else None, *overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_game_that_is_not_installed_is_one_sentence(pretrained: Path, tmp_path: Path) -> None:
    words = [*TINY, f"pretrained.path={pretrained}", "simulator.env.game=minedojo", "simulator.env.task=harvest_milk"]
    with pytest.raises(WorkspaceError, match="MineDojo is not installed; it needs JDK 8"):
        run(compose_training("train_ppo_from_vpt", words), tmp_path / "run")


def test_a_run_is_not_resumed_near_another_policy_or_with_other_environments(pretrained: Path, tmp_path: Path) -> None:
    run(config(pretrained, "training.iterations=1"), tmp_path / "run")
    other = write_policy(tmp_path / "other.ckpt", cue_policy(seed=1))
    with pytest.raises(WorkspaceError, match=r"other.ckpt is not the file that this run started from \(cloned.ckpt"):
        run(config(other), tmp_path / "run")
    with pytest.raises(WorkspaceError, match=r"continues with 3 environments; ppo.environments is 2"):
        run(config(pretrained, "ppo.environments=2"), tmp_path / "run")
    with pytest.raises(WorkspaceError, match="is not from a reinforcement learning run"):
        run(config(pretrained, f"training.resume={pretrained}"), tmp_path / "new")
