"""What a checkpoint would have done in recorded episodes: inference step by step, as the robot runs it.

At every recorded step the policy sees that step and the ones before it, as in training (the episode's first
step is repeated before its beginning), and answers with a chunk of actions. Nothing is fed back: the next observation
is the recorded one. Each episode gives a log in the robot server's format, so every reader of logs can read it.

The initial noise is drawn per step from the seed and the step number, so it does not depend on the batch size or the
device.

Legend: N steps of an episode, To observation steps, Ta executed actions, Da action dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from diffusion_policy.checkpoint import Checkpoint, load_policy, read_checkpoint
from diffusion_policy.command_line import Stopped
from diffusion_policy.commands import command
from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.gripper_columns import ScaleSetting
from diffusion_policy.dataset.joined_datasets import JoinedDatasets
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, GRIPPER_KEY, POSE_KEY, TIMESTAMP_KEY
from diffusion_policy.evaluate.episode_choice import EpisodeChoice, choose_episodes
from diffusion_policy.evaluate.writing import EvaluateError
from diffusion_policy.gripper_events import control_period
from diffusion_policy.gripper_scale import CONFIG_KEY
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER, Sampler, sampler_note, sampler_of_training
from diffusion_policy.policy.noise import initial_noise
from diffusion_policy.policy.registry import refuse_memory
from diffusion_policy.policy.robot_action import predict_robot_action
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.progress import Progress, ProgressCounter, no_progress
from diffusion_policy.run_log import LogStep, write_inference_log
from diffusion_policy.run_log.log import SINGLE_CAMERA
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout, SpecError, action_semantics, check_semantics, with_units
from diffusion_policy.storage import file_sha256

logger = logging.getLogger(__name__)

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Sampling:
    """How chunks are drawn; ``scheduler`` and ``steps`` as in ``set_sampler``."""

    scheduler: str = DEFAULT_SAMPLER.scheduler
    steps: int = DEFAULT_SAMPLER.steps
    seed: int = 42
    batch_size: int = 16


class RecordedEpisodes:
    """A dataset as one window per recorded step: what a policy sees at the step, and the chunk recorded from it on."""

    def __init__(
        self,
        policy: PolicyModule,
        zarr_path: str | Path | Sequence[str | Path],
        n_latency_steps: int = 0,
        gripper_scale: ScaleSetting = None,
    ):
        """Opens the dataset, or several as one, for this policy; ``gripper_scale`` as in `CogActImageDataset`.

        Raises:
            DatasetError, SpecError: there is no dataset, or it does not fit the policy (keys, sizes, meaning of the
                numbers).
        """
        before, after = policy.n_obs_steps - 1, policy.n_action_steps - 1
        self.policy = policy
        self.buffer = JoinedDatasets(zarr_path, gripper_scale)
        self.where = self.buffer.where
        self._windows = CogActImageDataset(
            policy.spec.robot.shape_meta(),
            zarr_path,
            horizon=before + policy.n_action_steps,
            pad_before=before,
            pad_after=after + n_latency_steps,
            n_obs_steps=policy.n_obs_steps,
            n_latency_steps=n_latency_steps,
            gripper_scale=gripper_scale,
        )
        assert len(self._windows) == self.buffer.n_steps, "one window per step"

    @property
    def n_episodes(self) -> int:
        """Number of episodes in the dataset."""
        return self.buffer.n_episodes

    def steps(self, episode: int, stride: int = 1) -> NDArray[np.int64]:
        """Returns every ``stride``-th step of an episode, counted over the whole dataset."""
        low = int(self.buffer.episode_ends[episode - 1]) if episode else 0
        return np.arange(low, int(self.buffer.episode_ends[episode]), stride)

    def choose(self, episodes: str | Sequence[int] | None, checkpoint: Checkpoint) -> list[int]:
        """Returns episode numbers, see `episode_choice.choose_episodes`.

        Raises:
            EvaluateError: no episode was held out, or a number is out of range.
        """
        return list(choose_episodes(self.buffer, checkpoint, episodes).numbers)

    def recorded_chunks(self, steps: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Returns recorded actions (N, Ta, Da) from each step on, and (N, Ta) whether each is inside the episode."""
        windows, n_executed = self._windows.windows, self.policy.n_action_steps
        inside = windows.start[steps][:, None] + np.arange(windows.horizon) < windows.high[steps][:, None]
        names = self.buffer.names(ACTION_KEY)
        columns = [names.index(name) for name in self.policy.spec.robot.action_names]
        actions = self.buffer.rows(ACTION_KEY).astype(np.float64)[:, columns]
        return actions[windows.steps(steps)[:, -n_executed:]], inside[:, -n_executed:]

    def observations(self, steps: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Returns the robot's observations at these steps, {key: (N, To, ...)}, by the same path as in training."""
        return dict(self._windows.get_batch(steps)["obs"])

    def logged_states(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns (N, M) measured numbers of `state_layout`: usually pose, then gripper (0 closed .. 1 open)."""
        parts = [self.buffer.rows(key).astype(np.float64)[steps] for key in self._state_keys]
        return np.concatenate(parts, axis=1)

    @cached_property
    def layout(self) -> ActionLayout:
        """The layout of an action, with the joint units given by the dataset."""
        return with_units(self.policy.spec.robot.layout, self.buffer.semantics)

    @cached_property
    def state_layout(self) -> ActionLayout:
        """The layout of `logged_states`."""
        names = [name for key in self._state_keys for name in self.buffer.names(key)]
        if len(set(names)) < len(names):  # two arrays have numbers of the same name
            names = [f"{key}.{name}" for key in self._state_keys for name in self.buffer.names(key)]
        return with_units(ActionLayout.of(names), self.buffer.semantics)

    @property
    def _state_keys(self) -> tuple[str, ...]:
        """Returns the measured pose and gripper of a single arm commanded by pose; otherwise what the policy reads."""
        arms = self.layout.arms
        if [arm.name for arm in arms] == [""] and not self.layout.has_joints:
            return POSE_KEY, GRIPPER_KEY
        keys = tuple(field.key for field in self.policy.spec.low_dim)
        if not keys:
            raise EvaluateError(
                f"{self.where}: the policy reads no measured numbers, which are needed with actions of "
                f"{self.layout.describe()}; name an array of them in shape_meta.obs"
            )
        return keys

    def timestamps(self, steps: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Returns (N,) seconds, or None if the dataset has no times."""
        return self.buffer.rows(TIMESTAMP_KEY)[steps] if TIMESTAMP_KEY in self.buffer else None

    def step_seconds(self, episode: int) -> float | None:
        """Returns the median seconds between the steps of an episode, by its own clock; None if it has none."""
        return control_period(self.timestamps(self.steps(episode)))


def predict_chunks(
    episodes: RecordedEpisodes,
    steps: NDArray[np.int64],
    sampling: Sampling,
    sample: int = 0,
    on_steps: Callable[[int], None] = lambda n_steps: None,
) -> tuple[NDArray[np.float64], list[dict[str, bytes]]]:
    """Computes the policy's answers at these steps of the dataset.

    Args:
        episodes: the episodes, with a policy whose sampler is set.
        steps: (N,) step numbers, counted over the whole dataset.
        sampling: seed and batch size; the rest is not used.
        sample: number of the sample, which selects the noise.
        on_steps: called with the number of steps answered since the last call.

    Returns:
        chunks (N, Ta, Da) in the dataset's units, and the newest frames of each step by camera, as JPEG (none without
        a camera).
    """
    policy = episodes.policy
    chunks: list[NDArray[np.float64]] = []
    frames: list[dict[str, bytes]] = []
    for batch in np.array_split(steps, range(sampling.batch_size, len(steps), sampling.batch_size)):
        obs = episodes.observations(batch)
        noise = initial_noise(policy, [_seed(sampling.seed, sample, step) for step in batch.tolist()])
        generator = torch.Generator().manual_seed(_seed(sampling.seed, sample, int(batch[0])))
        answer = predict_robot_action(policy, obs, initial_noise=noise, generator=generator)
        chunks.append(answer["action"].cpu().double().numpy())
        if policy.spec.rgb and sample == 0:
            cameras = [camera.key for camera in policy.spec.rgb]
            newest = zip(*(obs[key][:, -1].numpy() for key in cameras), strict=True)
            named = cameras if len(cameras) > 1 else [SINGLE_CAMERA]
            frames += [dict(zip(named, map(_jpeg, images), strict=True)) for images in newest]
        on_steps(len(batch))
    return np.concatenate(chunks), frames


def check_finite(chunks: NDArray[np.float64], checkpoint: str | Path, episode: int) -> None:
    """Refuses answers (..., N, Ta, Da) that are not finite, for which no error or score is defined.

    Raises:
        EvaluateError: an answer is not finite; names the first such step of the episode.
    """
    n_answers = chunks.shape[-3]
    finite = np.isfinite(chunks).all(axis=(-2, -1)).reshape(-1, n_answers)
    bad = np.flatnonzero(~finite.all(axis=0))
    if bad.size:
        raise EvaluateError(
            f"{checkpoint}: the policy answers NaN or infinity at {bad.size} of {n_answers} steps of episode "
            f"{episode}, the first of them number {bad[0]}; look for the cause with: "
            f"{command('doctor', '--checkpoint', checkpoint)}"
        )


def run_recorded_inference(
    checkpoint_path: str | Path,
    zarr_path: str | Path,
    out_dir: str | Path,
    episodes: str | Sequence[int] | None = None,
    scheduler: str = DEFAULT_SAMPLER.scheduler,
    steps: int = DEFAULT_SAMPLER.steps,
    device: str = "cpu",
    seed: int = 42,
    stride: int = 1,
    which: str = "ema_model",
    gripper_scale: str | None = None,
    on_progress: Progress = no_progress,
) -> list[Path]:
    """Runs a checkpoint on recorded episodes and writes one log of the third generation for each.

    Args:
        checkpoint_path: any checkpoint of the reference or of this project.
        zarr_path: a converted dataset.
        out_dir: where the logs go; existing logs are never replaced.
        episodes: "held-out" (default), "all", or episode numbers.
        scheduler: "ddim", "ddpm" or "dpm-solver++".
        steps: denoising steps.
        device: "cpu", "cuda:0", ...
        seed: seed of the noise.
        stride: number of recorded steps per inference.
        which: "ema_model" or "model".
        gripper_scale: scale in which the dataset's gripper is stored, see `open_recorded`; logs hold 0 closed .. 1
            open.
        on_progress: called with the number of inferences done, and the total.

    Returns:
        the logs, in the order of the episodes.

    Raises:
        WorkspaceError: the checkpoint, the dataset, their semantics or the choice of episodes is invalid.
        Stopped: interrupted after some of the logs were written.
    """
    if stride < 1:
        raise EvaluateError(f"stride is {stride}; expected 1 or more")
    checkpoint_path = Path(checkpoint_path)
    recorded, checkpoint = open_recorded(checkpoint_path, zarr_path, device, which, gripper_scale)
    set_sampler(recorded.policy, scheduler, steps)
    sampling = Sampling(scheduler, steps, seed)
    choice = choose_episodes(recorded.buffer, checkpoint, episodes)
    logger.info("%s", choice.note)
    note = sampler_note(sampler_of_training(checkpoint.provenance, checkpoint.cfg), Sampler(scheduler, steps))
    if note is not None:
        logger.warning(note)
    meta = {
        "checkpoint": checkpoint.where,
        "checkpoint_sha256": file_sha256(checkpoint.path),
        "weights": which,
        "scheduler": scheduler,
        "steps": steps,
        "seed": seed,
        "stride": stride,
        "dataset": str(zarr_path),
        **_meaning(recorded),
    }
    counted = ProgressCounter(on_progress, sum(len(recorded.steps(episode, stride)) for episode in choice.numbers))
    paths: list[Path] = []
    for episode, status in zip(choice.numbers, choice.statuses, strict=True):
        try:
            log_steps = _episode_log(recorded, recorded.steps(episode, stride), sampling, counted.add)
            check_finite(np.stack([step.actions for step in log_steps]), checkpoint_path, episode)
            paths.append(write_inference_log(out_dir, log_steps, {**meta, "episode": episode, "split": status}))
        except KeyboardInterrupt as error:
            raise _stopped(paths, choice, out_dir) from error
        logger.info("episode %d: %d steps -> %s", episode, len(log_steps), paths[-1])
    return paths


def _meaning(recorded: RecordedEpisodes) -> dict[str, Any]:
    """Returns the semantics of a log's numbers, with the states' names if these are not a pose and a gripper."""
    layout, names = recorded.layout, recorded.state_layout.names
    semantics = action_semantics(layout.names, dict(zip(layout.names, layout.units, strict=True)))
    return {"action_semantics": semantics, **({} if names == POSE_GRIPPER else {"state_names": list(names)})}


def _stopped(paths: Sequence[Path], choice: EpisodeChoice, out_dir: str | Path) -> KeyboardInterrupt:
    """Returns an interruption that states what was saved, and that the same command continues with the rest."""
    if not paths:
        return KeyboardInterrupt()
    rest = map(str, choice.numbers[len(paths) :])
    kept = f"logs of {len(paths)} of {len(choice.numbers)} episodes are kept in {out_dir}"
    return Stopped(kept, ("--episodes", *rest))


def open_recorded(
    checkpoint_path: str | Path,
    zarr_path: str | Path,
    device: str = "cpu",
    which: str = "ema_model",
    gripper_scale: str | None = None,
) -> tuple[RecordedEpisodes, Checkpoint]:
    """Opens a checkpoint's policy, and recorded episodes with the same semantics as its training data.

    Args:
        checkpoint_path: path of the policy's checkpoint.
        zarr_path: path of the dataset.
        device: device of the policy.
        which: "ema_model" or "model".
        gripper_scale: scale in which the dataset's gripper is stored; if neither this nor the dataset states it,
            the scale that was declared for training is used.

    Raises:
        EvaluateError: there is no such device, or a log cannot hold the policy's actions.
        CheckpointError, DatasetError, SpecError: the files or their semantics are invalid.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise EvaluateError(f"device is {device!r}, but no CUDA device is available; use --device cpu")
    checkpoint = read_checkpoint(checkpoint_path)
    refuse_memory(checkpoint.cfg.policy, checkpoint.path)
    policy = load_policy(checkpoint, which=which, device=device)
    _check_layout(policy, checkpoint_path)
    latency = int(OmegaConf.select(checkpoint.cfg, "n_latency_steps", default=0))
    scale = gripper_scale or _scale_of_training(checkpoint, zarr_path)
    recorded = RecordedEpisodes(policy, zarr_path, latency, scale)
    learned_from = (checkpoint.provenance or {}).get("action_semantics")
    if recorded.buffer.semantics is not None:
        check_semantics(learned_from, recorded.buffer.semantics, f"{checkpoint_path} with {zarr_path}")
    return recorded, checkpoint


def _check_layout(policy: PolicyModule, checkpoint_path: str | Path) -> None:
    """Refuses actions none of whose numbers is known and can be judged."""
    text = f"{checkpoint_path}: its action is {list(policy.spec.action_names)}"
    try:
        layout = policy.spec.robot.layout
    except SpecError as error:
        raise EvaluateError(f"{text}; {error}") from error
    if not (layout.motion_columns or layout.has_gripper):
        raise EvaluateError(f"{text}; expected names of positions, rotations, joints or grippers among them")


def _scale_of_training(checkpoint: Checkpoint, zarr_path: str | Path) -> str | None:
    """Returns the scale declared for training, for a dataset whose gripper needs a declaration."""
    configured = OmegaConf.select(checkpoint.cfg, CONFIG_KEY, default=None)
    return configured if isinstance(configured, str) and JoinedDatasets(zarr_path).needs_gripper_scale else None


def _episode_log(
    recorded: RecordedEpisodes, steps: NDArray[np.int64], sampling: Sampling, on_steps: Callable[[int], None]
) -> list[LogStep]:
    chunks, frames = predict_chunks(recorded, steps, sampling, on_steps=on_steps)
    states, times = recorded.logged_states(steps), recorded.timestamps(steps)
    return [
        LogStep(
            number=int(step - steps[0]),
            state=states[i],
            actions=chunks[i],
            timing={} if times is None else {"timestamp": float(times[i])},
            frames=frames[i] if frames else {},
        )
        for i, step in enumerate(steps)
    ]


def _seed(seed: int, sample: int, step: int) -> int:
    """Combines three numbers into one seed, such that neighboring ones share no noise."""
    return int(np.random.SeedSequence([seed, sample, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _jpeg(image: NDArray[Any]) -> bytes:
    """Encodes (3, H, W) uint8 RGB as JPEG."""
    bgr = cv2.cvtColor(np.ascontiguousarray(np.moveaxis(image, 0, -1)), cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return bytes(encoded.tobytes())
