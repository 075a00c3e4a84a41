"""Parity of serving and training: sends recorded frames through both, and finds the cause of a difference.

Recorded frames are sent to a live server as "inspect" requests; it replies with the model's input and the actions. The
same frames are loaded through the dataset. Where the inputs differ, known mistakes are applied to the training side,
and the one that explains the difference is reported. Frames are sent as PNG, to test the server alone, or as JPEG, to
measure the effect of the robot's compression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.evaluate.recorded_inference import RecordedEpisodes
from diffusion_policy.hub import local_copy
from diffusion_policy.policy.noise import window_noise
from diffusion_policy.policy.robot_action import predict_robot_action
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.serve.client import LineClient, observation
from diffusion_policy.serve.client.messages import Asked
from diffusion_policy.serve.engine.wire import Wire
from diffusion_policy.serve.transport.protocol import array_from_json
from diffusion_policy.spec import StepTransform, arms_of, default_names
from diffusion_policy.spec.action_layout import Arm
from diffusion_policy.storage import file_sha256
from diffusion_policy.tables import Printable, Table, as_texts

Array = NDArray[Any]
Images = dict[str, NDArray[np.uint8]]

# Tolerances of input values: one gray level, and the last digits of float32.
IMAGE_TOLERANCE, STATE_TOLERANCE = 1.0, 1e-6
ACTION_TOLERANCE = 1e-3
# JPEG at quality 75 or better stays within this mean difference of gray levels on camera images.
JPEG_LEVELS = 6.0
# Camera pixels per side for each pixel of a recorded frame; difference in gray levels of a block's rim from its mean.
ENLARGED, RIM = 4, 6
# Larger frames would not fit the limits of a message, and are sent as they are.
MAX_ENLARGED_PIXELS = 640 * 360
# A mistake explains a difference if it leaves less than this part of it.
EXPLAINED = 0.25


@dataclass(frozen=True)
class KeyParity:
    """One observation key: largest and mean difference, and what explains it."""

    key: str
    largest: float
    mean: float
    culprit: str | None


@dataclass(frozen=True)
class ParityReport:
    """The result of a comparison.

    Attributes:
        requests: number of requests.
        keys: results by observation key.
        action_difference: largest difference of executed actions; None without a checkpoint.
        same_checkpoint: whether the server serves the given checkpoint; None without one.
        resize_tested: whether frames were sent larger than the policy's, so that the server had to resize them.
    """

    requests: int
    keys: tuple[KeyParity, ...]
    action_difference: float | None = None
    same_checkpoint: bool | None = None
    resize_tested: bool = False

    @property
    def passed(self) -> bool:
        """Whether inputs are equal, and actions too if they were compared."""
        actions = self.action_difference is None or self.action_difference <= ACTION_TOLERANCE
        return actions and all(entry.culprit is None for entry in self.keys) and self.same_checkpoint is not False

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON; infinite differences, of inputs whose shapes differ, are null."""
        content = asdict(self)
        for entry in content["keys"]:
            entry |= {name: entry[name] if np.isfinite(entry[name]) else None for name in ("largest", "mean")}
        return {**content, "passed": self.passed}

    def table(self) -> list[Printable]:
        """Returns a table for the terminal."""
        table = Table("input", "largest difference", "mean", "culprit", framed=True)
        for entry in self.keys:
            table.add(entry.key, f"{entry.largest:.3g}", f"{entry.mean:.3g}", entry.culprit or "equal")
        lines = [f"{self.requests} requests; {'the inputs agree' if self.passed else 'NOT equal'}"]
        if self.action_difference is not None:
            lines.append(f"actions differ by at most {self.action_difference:.2e}")
        if not self.resize_tested:
            lines.append("frames were sent at the policy's own size, so the server's resize was not tested")
        if self.same_checkpoint is False:
            lines.append("the server does not serve the given checkpoint")
        return [table, *as_texts(lines)]


@dataclass
class ComparedInputs:
    """Inputs of all requests, from training and from the server."""

    trained: dict[str, list[Array]] = field(default_factory=dict)
    served: dict[str, list[Array]] = field(default_factory=dict)

    def add(self, trained: dict[str, Array], served: dict[str, Array]) -> None:
        """Adds the inputs (To, ...) of one request by key; WorkspaceError if the keys of the two sides differ."""
        if trained.keys() != served.keys():
            raise WorkspaceError(f"the server's policy reads {sorted(served)}; the dataset gives {sorted(trained)}")
        for key, value in trained.items():
            self.trained.setdefault(key, []).append(value)
            self.served.setdefault(key, []).append(served[key])


def check_parity(
    checkpoint: str | Path, zarr_path: str | Path, client: LineClient, requests: int = 8, encoding: str = ".png"
) -> ParityReport:
    """Sends recorded frames to a live server and compares its inputs with those of training.

    Args:
        checkpoint: the file that the server should be serving.
        zarr_path: recorded data.
        client: a connected client; the server must allow inspection.
        requests: number of requests, spread over the dataset.
        encoding: ".png" or ".jpg".

    Raises:
        WorkspaceError: the server does not answer, or reads other keys.
    """
    if requests < 1:
        raise WorkspaceError(f"{requests} requests; expected one or more")
    about = client.metadata
    policy = load_policy(checkpoint, which=about["weights"])
    set_sampler(policy, about["scheduler"], about["steps"])
    recorded, wire, asked = RecordedEpisodes(policy, zarr_path), Wire(policy.spec.robot), Asked.of(about)
    transform = StepTransform(policy.spec)
    collected, differences = ComparedInputs(), []
    for step in np.linspace(policy.n_obs_steps, recorded.buffer.n_steps - 1, requests).astype(np.int64):
        trained = recorded.observations(np.array([step]))
        reply = client.ask(_request(recorded, wire, asked, int(step), trained, encoding))
        inputs = transform.observed({key: value.numpy() for key, value in trained.items()})
        collected.add(
            {key: value[0] for key, value in inputs.items()},
            {key: array_from_json(value) for key, value in reply["inputs"].items()},
        )
        generator = torch.Generator().manual_seed(reply["seed"])
        noise = window_noise(policy, generator)
        started = None if noise is None else noise[None]
        expected = predict_robot_action(policy, trained, initial_noise=started, generator=generator)["action"][
            0
        ].numpy()
        differences.append(float(np.abs(wire.actions(expected) - array_from_json(reply["actions"])).max()))
    digest = file_sha256(local_copy(checkpoint))
    _, height, width = policy.spec.rgb[0].shape
    return ParityReport(
        requests,
        compare_inputs(collected, {state.key: arms_of(state.names) for state in policy.spec.low_dim}),
        max(differences),
        about["checkpoint_sha256"] == digest,
        resize_tested=is_enlarged(height, width, encoding),
    )


def _request(
    recorded: RecordedEpisodes, wire: Wire, asked: Asked, step: int, trained: dict[str, torch.Tensor], encoding: str
) -> dict[str, Any]:
    images = {
        camera: [_encode(np.moveaxis(image, 0, -1), encoding) for image in trained[camera][0].numpy()]
        for camera in asked.cameras
    }
    low = max(int(end) for end in (0, *recorded.buffer.episode_ends) if end <= step)
    window = np.maximum(np.arange(step - recorded.policy.n_obs_steps + 1, step + 1), low)
    states = wire.recorded(recorded.logged_states(window), recorded.state_layout)
    return observation("inspect", images, timestamps=np.arange(len(window)) / 10, states=states, asked=asked)


def is_enlarged(height: int, width: int, encoding: str) -> bool:
    """Whether a frame is sent at a camera's size, so that the server's resize is tested as well."""
    return encoding == ".png" and height * width <= MAX_ENLARGED_PIXELS  # JPEG would change the blocks


def enlarge(frame: Array) -> Array:
    """Returns a frame (H, W, 3) at ENLARGED times its size; area interpolation restores the original exactly.

    In each 4 x 4 block the 12 pixels of the rim are darker by n and the 4 in the center brighter by 3 n.
    """
    rim = np.minimum(RIM, np.minimum(frame, (255 - frame) // 3)).astype(np.uint8)
    large, darker = (value.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1) for value in (frame, rim))
    rows, columns = (np.isin(np.arange(size) % ENLARGED, (1, 2)) for size in large.shape[:2])
    center = (rows[:, None] & columns[None, :])[..., None]
    return np.where(center, large + 3 * darker, large - darker)


def _encode(frame: Array, encoding: str) -> bytes:
    if is_enlarged(frame.shape[0], frame.shape[1], encoding):
        frame = enlarge(frame)
    bgr = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(encoding, bgr)[1].tobytes())


def compare_inputs(collected: ComparedInputs, arms: Mapping[str, Sequence[Arm]] | None = None) -> tuple[KeyParity, ...]:
    """Compares inputs (To, ...) by key, and names the mistake that explains a difference.

    Args:
        collected: inputs of both sides.
        arms: the arms whose poses the states hold, by key; if not given, inferred from the number of values.
    """
    differences = []
    for key in collected.trained:
        trained, served = np.stack(collected.trained[key]), np.stack(collected.served[key])
        if trained.shape != served.shape:
            differences.append(
                KeyParity(key, float("inf"), float("inf"), f"shape {served.shape[1:]}, not {trained.shape[1:]}")
            )
            continue
        apart = np.abs(trained.astype(np.float64) - served)
        is_image = trained.ndim == 5
        tolerance = IMAGE_TOLERANCE if is_image else STATE_TOLERANCE
        culprit = None
        if apart.max() > tolerance:
            known = (arms or {}).get(key)
            own = arms_of(default_names(trained.shape[-1])) if known is None else known
            culprit = name_culprit(trained, served, IMAGE_MISTAKES if is_image else state_mistakes(own))
            if culprit is None and is_image and apart.mean() < JPEG_LEVELS:
                culprit = "JPEG compression, or a slightly different resize"
            culprit = culprit or "unknown: none of the known mistakes explains it"
        differences.append(KeyParity(key, float(apart.max()), float(apart.mean()), culprit))
    return tuple(differences)


def name_culprit(trained: Array, served: Array, mistakes: Sequence[tuple[str, Callable[[Array], Array]]]) -> str | None:
    """Returns the mistake that, applied to the training side, best explains the server's input; None if none does."""
    before = np.abs(trained.astype(np.float64) - served).mean()
    left = [(float(np.abs(apply(trained).astype(np.float64) - served).mean()), name) for name, apply in mistakes]
    distance, name = min(left)
    return name if distance < EXPLAINED * before else None


def _each(change: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Returns a function that applies a change of frames (H, W, 3) to a stack (..., 3, H, W)."""

    def apply(images: Array) -> Array:
        frames = np.moveaxis(images.reshape(-1, *images.shape[-3:]), 1, -1)
        changed = np.stack([change(np.ascontiguousarray(frame)) for frame in frames])
        return np.moveaxis(changed, -1, 1).reshape(images.shape)

    return apply


def _resized(interpolation: int) -> Callable[[Array], Array]:
    """Returns a function that resizes the sent frame with a given interpolation."""
    return _each(lambda frame: cv2.resize(enlarge(frame), frame.shape[1::-1], interpolation=interpolation))


def _cropped(share: float) -> Callable[[Array], Array]:
    """Returns a function that crops the center of the sent frame and resizes it."""

    def cut(frame: Array) -> Array:
        large = enlarge(frame)
        top, left = (round(size * (1 - share) / 2) for size in large.shape[:2])
        inner = np.ascontiguousarray(large[top : large.shape[0] - top, left : large.shape[1] - left])
        return cv2.resize(inner, frame.shape[1::-1], interpolation=cv2.INTER_AREA)

    return _each(cut)


IMAGE_MISTAKES: tuple[tuple[str, Callable[[Array], Array]], ...] = (
    ("color order: BGR where RGB is expected", lambda images: images[:, :, ::-1]),
    ("step order: newest first", lambda images: images[:, ::-1]),
    ("step spacing: the newest frame twice", lambda images: np.repeat(images[:, -1:], images.shape[1], axis=1)),
    ("step spacing: the oldest frame twice", lambda images: np.repeat(images[:, :1], images.shape[1], axis=1)),
    ("mirrored left to right", lambda images: images[..., ::-1]),
    ("upside down", lambda images: images[..., ::-1, :]),
    ("crop: cut to 95 % before resizing", _cropped(0.95)),
    ("crop: cut to 90 % before resizing", _cropped(0.9)),
    ("crop: cut to 80 % before resizing", _cropped(0.8)),
    ("interpolation: nearest, where area is expected", _resized(cv2.INTER_NEAREST)),
    ("interpolation: linear, where area is expected", _resized(cv2.INTER_LINEAR)),
    ("interpolation: cubic, where area is expected", _resized(cv2.INTER_CUBIC)),
    ("interpolation: Lanczos, where area is expected", _resized(cv2.INTER_LANCZOS4)),
)


def state_mistakes(arms: Sequence[Arm]) -> tuple[tuple[str, Callable[[Array], Array]], ...]:
    """Returns known mistakes in states (..., D) that hold these arms."""
    turns = [list(arm.rotation) for arm in arms if arm.representation == "quaternion"]
    columns = [column for arm in arms for column in arm.position]

    def quaternions(order: Sequence[int], sign: float = 1.0) -> Callable[[Array], Array]:
        def apply(states: Array) -> Array:
            changed = states.copy()
            for columns in turns:
                changed[..., columns] = sign * states[..., columns][..., list(order)]
            return changed

        return apply

    def in_millimeters(states: Array) -> Array:
        changed = states.copy()
        changed[..., columns] *= 1000.0
        return changed

    return (
        ("quaternion order: wxyz where xyzw is expected", quaternions((3, 0, 1, 2))),
        ("quaternion order: xyzw read as wxyz", quaternions((1, 2, 3, 0))),
        ("quaternion sign: the other hemisphere", quaternions((0, 1, 2, 3), -1.0)),
        ("units: millimeters where meters are expected", in_millimeters),
        ("polarity: 1 = closed where 1 = open is expected", lambda states: 1.0 - states),
        ("step order: newest first", lambda states: states[:, ::-1]),
        ("step spacing: the newest state twice", lambda states: np.repeat(states[:, -1:], states.shape[1], axis=1)),
    )
