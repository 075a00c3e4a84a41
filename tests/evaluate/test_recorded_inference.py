"""A checkpoint on recorded episodes: what the policy sees, what the log holds, what is refused."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from evaluation_factory import N_EPISODES, N_STEPS, write_dataset, write_tiny_checkpoint
from gripper_scales import FOREIGN, rewrite_gripper

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.dataset.windows import validation_episodes
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.evaluate.episode_choice import parse_episodes
from diffusion_policy.evaluate.gripper import judge
from diffusion_policy.evaluate.open_loop_report import evaluate_open_loop
from diffusion_policy.evaluate.recorded_inference import (
    Sampling,
    open_recorded,
    predict_chunks,
    run_recorded_inference,
)
from diffusion_policy.evaluate.writing import EvaluateError
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.run_log import read_log
from diffusion_policy.spec import SpecError, decode_jpeg, policy_observation

HELD_OUT = np.flatnonzero(validation_episodes(N_EPISODES, 0.5, 42)).tolist()


def test_a_log_per_held_out_episode(tiny_checkpoint: Path, recorded_zarr: Path, tmp_path: Path) -> None:
    paths = run_recorded_inference(tiny_checkpoint, recorded_zarr, tmp_path / "logs", steps=2)
    logs = [read_log(path) for path in paths]
    assert [log.meta["episode"] for log in logs] == HELD_OUT
    data = zarr.open_group(str(recorded_zarr), mode="r")["data"]
    for log, episode in zip(logs, HELD_OUT, strict=True):
        rows = slice(episode * N_STEPS, (episode + 1) * N_STEPS)
        assert (log.generation, log.actions.shape) == (3, (N_STEPS, 4, 8))
        np.testing.assert_array_equal(log.states[:, :7], data["robot_eef_pose"][rows])
        np.testing.assert_array_equal(log.states[:, 7:], data["robot_gripper_state"][rows])
        assert log.step_period == pytest.approx(0.1, abs=1e-3)
        frame = decode_jpeg(log.steps[3].frames["image"], "step 3").astype(int)
        assert np.abs(frame - data["image"][episode * N_STEPS + 3]).mean() < 6, "RGB in, RGB out"
        judge(log)
    assert logs[0].meta["checkpoint_sha256"] == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert {key: logs[0].meta[key] for key in ("scheduler", "steps", "seed", "weights", "stride")} == {
        "scheduler": "ddim",
        "steps": 2,
        "seed": 42,
        "weights": "ema_model",
        "stride": 1,
    }
    assert logs[0].meta["action_semantics"]["quaternion_order"] == "xyzw"


def test_the_policy_sees_what_training_showed_it(tiny_checkpoint: Path, recorded_zarr: Path) -> None:
    recorded, _ = open_recorded(tiny_checkpoint, recorded_zarr)
    data = zarr.open_group(str(recorded_zarr), mode="r")["data"]
    for step, seen in ((N_STEPS + 5, [N_STEPS + 4, N_STEPS + 5]), (N_STEPS, [N_STEPS, N_STEPS])):
        expected = policy_observation(
            recorded.policy.spec, {key: np.stack([data[key][i] for i in seen]) for key in data}
        )
        found = recorded.observations(np.array([step]))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key][0].numpy(), value)


def test_recorded_chunks_end_with_their_episode(tiny_checkpoint: Path, recorded_zarr: Path) -> None:
    recorded, _ = open_recorded(tiny_checkpoint, recorded_zarr)
    action = zarr.open_group(str(recorded_zarr), mode="r")["data/action"][:]
    chunks, inside = recorded.recorded_chunks(recorded.steps(1))
    np.testing.assert_array_equal(chunks[0], action[N_STEPS : N_STEPS + 4])
    assert inside[:-3].all()
    assert inside[-1].tolist() == [True, False, False, False]


def test_predictions_are_those_of_the_policy(tiny_checkpoint: Path, recorded_zarr: Path) -> None:
    recorded, _ = open_recorded(tiny_checkpoint, recorded_zarr)
    set_sampler(recorded.policy, "ddim", 3)
    steps = recorded.steps(2)
    chunks, frames = predict_chunks(recorded, steps, Sampling(steps=3, batch_size=5))
    alone, _ = predict_chunks(recorded, steps, Sampling(steps=3, batch_size=1))
    assert len(frames) == len(steps)
    np.testing.assert_allclose(chunks, alone, atol=1e-5)
    again, frames = predict_chunks(recorded, steps, Sampling(steps=3), sample=1)
    assert frames == []
    assert np.abs(again - chunks).max() > 1e-3, "another sample, another noise"


def test_episodes_and_strides_are_chosen(tiny_checkpoint: Path, recorded_zarr: Path, tmp_path: Path) -> None:
    paths = run_recorded_inference(tiny_checkpoint, recorded_zarr, tmp_path, [3, 0], steps=1, stride=5, which="model")
    logs = [read_log(path) for path in paths]
    assert [log.meta["episode"] for log in logs] == [3, 0]
    assert [step.number for step in logs[0].steps] == [0, 5, 10]
    assert parse_episodes(["all"]) == "all"
    assert parse_episodes(["3", "0"]) == [3, 0]
    recorded, checkpoint = open_recorded(tiny_checkpoint, recorded_zarr)
    assert recorded.choose("all", checkpoint) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": [7]}, r"no episodes \[7\]; it has 0 to 3"),
        ({"episodes": []}, r"no episodes \[\]"),
        ({"episodes": "some"}, "episodes is 'some'"),
        ({"scheduler": "euler"}, "no scheduler 'euler'; expected one of ddim, ddpm, dpm-solver"),
        ({"steps": 21}, "21 denoising steps; expected 1 to the 20 of training"),
        ({"steps": 0}, "0 denoising steps"),
        ({"stride": 0}, "stride is 0"),
    ],
)
def test_refuses_what_cannot_be_run(
    tiny_checkpoint: Path, recorded_zarr: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(WorkspaceError, match=message):
        run_recorded_inference(tiny_checkpoint, recorded_zarr, tmp_path / "logs", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "logs").exists()


def test_refuses_held_out_episodes_that_training_saw(recorded_zarr: Path, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "all.ckpt", val_ratio=0.0)
    with pytest.raises(EvaluateError, match=r"training held no episode of .* out \(val_ratio 0.0, 4 episodes\)"):
        run_recorded_inference(checkpoint, recorded_zarr, tmp_path)


def test_refuses_unknown_words_and_absent_devices(tiny_checkpoint: Path, recorded_zarr: Path) -> None:
    with pytest.raises(EvaluateError, match="--episodes 1 two: expected held-out, all, or episode numbers"):
        parse_episodes(["1", "two"])
    if not torch.cuda.is_available():
        with pytest.raises(EvaluateError, match="no CUDA device is available"):
            open_recorded(tiny_checkpoint, recorded_zarr, device="cuda:0")


def test_refuses_data_of_another_meaning(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set.zarr")
    root = zarr.open_group(str(path), mode="r+")
    sound = open_recorded(tiny_checkpoint, path)[0].buffer.rows("action")
    label = dict(root.attrs["action_semantics"])
    # A gripper labeled with the opposite polarity is read as labeled, since its meaning is known.
    root.attrs["action_semantics"] = {**label, "gripper": {"open": 0.0, "closed": 1.0}}
    turned = open_recorded(tiny_checkpoint, path)[0].buffer.rows("action")
    np.testing.assert_array_equal(turned[:, -1], 1 - sound[:, -1])
    root.attrs["action_semantics"] = {**label, "quaternion_order": "wxyz"}
    with pytest.raises(SpecError, match="quaternion_order is"):
        open_recorded(tiny_checkpoint, path)


def test_refuses_actions_that_no_log_holds(recorded_zarr: Path, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "wide.ckpt", width=5)
    with pytest.raises(EvaluateError, match=r"its action is \['a0', .*expected names of positions"):
        open_recorded(checkpoint, recorded_zarr)


def test_a_pose_policy_writes_poses(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "pose.ckpt", width=7)
    (path, *_) = run_recorded_inference(checkpoint, write_dataset(tmp_path / "set.zarr"), tmp_path, [0], steps=1)
    assert read_log(path).actions.shape == (N_STEPS, 4, 7)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm-solver++"])
def test_samplers_keep_the_noise_levels_of_training(tiny_checkpoint: Path, scheduler: str) -> None:
    policy = load_policy(tiny_checkpoint)
    trained = policy.noise_scheduler
    set_sampler(policy, scheduler, 5)
    assert torch.equal(policy.noise_scheduler.alphas_cumprod, trained.alphas_cumprod)
    assert policy.noise_scheduler.config.clip_sample or isinstance(policy.noise_scheduler, DPMSolverMultistepScheduler)
    assert policy.num_inference_steps == 5


@pytest.mark.parametrize("name", FOREIGN)
def test_recordings_in_another_scale_need_its_name(
    tiny_checkpoint: Path, recorded_zarr: Path, tmp_path: Path, name: str
) -> None:
    """Offline inference and open loop read recordings through this one function."""
    sound = open_recorded(tiny_checkpoint, recorded_zarr)[0]
    path = rewrite_gripper(Path(shutil.copytree(recorded_zarr, tmp_path / "set.zarr")), name)
    with pytest.raises(SpecError, match="--gripper-scale"):
        open_recorded(tiny_checkpoint, path)
    recorded, _ = open_recorded(tiny_checkpoint, path, gripper_scale=name)
    steps = sound.steps(0)
    np.testing.assert_allclose(recorded.recorded_chunks(steps)[0], sound.recorded_chunks(steps)[0], atol=1e-6)
    np.testing.assert_allclose(recorded.logged_states(steps), sound.logged_states(steps), atol=1e-6)


def test_logs_and_errors_of_a_converted_dataset_are_those_of_0_to_1(tiny_checkpoint: Path, tmp_path: Path) -> None:
    scale = "signed_closed1/meters:0.08"
    sound = write_dataset(tmp_path / "sound.zarr")
    path = rewrite_gripper(write_dataset(tmp_path / "set.zarr"), "signed_closed1", "meters:0.08")
    (ours,) = run_recorded_inference(tiny_checkpoint, sound, tmp_path / "a", [0], steps=1)
    (theirs,) = run_recorded_inference(tiny_checkpoint, path, tmp_path / "b", [0], steps=1, gripper_scale=scale)
    np.testing.assert_allclose(read_log(theirs).states, read_log(ours).states, atol=1e-6)
    assert judge(read_log(theirs)).gripper_scale == "open1"
    errors = [
        evaluate_open_loop(tiny_checkpoint, each, [0], Sampling(steps=1), 1, gripper_scale=given)
        .scores["policy"]
        .means()
        for each, given in ((sound, None), (path, scale))
    ]
    assert errors[0] == pytest.approx(errors[1], nan_ok=True)
