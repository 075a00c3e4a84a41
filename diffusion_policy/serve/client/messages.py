"""Messages of clients: observations are checked before they are sent, replies before they reach an arm.

Legend of shapes: To observation steps, n actions, D numbers of an action.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.transport.continuation import REQUEST_ID, Continuation
from diffusion_policy.serve.transport.observations import CAMERA_TIMES, STATE_NAMES
from diffusion_policy.spec import POSE, POSE_GRIPPER

Images = Sequence[Any] | Mapping[str, Sequence[Any]]
# Images and measured values of an observation that were checked: as ``Asked.frames`` and ``Asked.numbers`` return them.
Frames = list[Any] | dict[str, list[Any]]
Measured = dict[str, NDArray[np.float64]]


class ServerError(WorkspaceError):
    """The server replied with an error, or not at all: hold the pose. ``code``: see ``protocol``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class Chunk:
    """An action chunk for the arm.

    Attributes:
        actions: (n, 8) absolute pose, meters and xyzw, then gripper, 1 = open; of another policy (n, D), in the order
            of the server's ``state_names``.
        timestamps: (n,) time of each action, seconds on the client's clock.
        reply: the complete reply of the server.
    """

    actions: NDArray[np.float64]
    timestamps: NDArray[np.float64]
    reply: Mapping[str, Any] = field(default_factory=dict)

    def due(self, now: float) -> NDArray[np.float64]:
        """Returns the actions whose time has not passed, (m, D), m <= n; half a step of delay is allowed."""
        half = float(np.median(np.diff(self.timestamps))) / 2 if len(self.timestamps) > 1 else 0.0
        return self.actions[self.timestamps + half >= now]


@dataclass(frozen=True)
class Asked:
    """The form of the observations that a server expects, from its metadata.

    Attributes:
        state_names: names of ``states``; None: poses and grippers.
        cameras: keys of the images.
    """

    state_names: tuple[str, ...] | None
    cameras: tuple[str, ...]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Asked:
        """Reads it from metadata; ServerError if that is not metadata of this protocol."""
        names, cameras = metadata.get(STATE_NAMES), metadata.get("cameras", ["image"])
        for value in ([] if names is None else names, cameras):
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise ServerError("malformed", f"the server's metadata names {value!r}; expected a list of names")
        return cls(None if names is None else tuple(names), tuple(cameras))

    @property
    def width(self) -> int:
        """D: number of values of an action."""
        return len(POSE_GRIPPER if self.state_names is None else self.state_names)

    def numbers(
        self,
        poses: ArrayLike | None,
        grippers: ArrayLike | None,
        timestamps: ArrayLike | None,
        states: ArrayLike | None,
    ) -> Measured:
        """Returns the measured values by key of the message; ServerError where they are not what the server expects."""
        if self.state_names is None and states is not None and poses is None and grippers is None:
            checked = _numbers({"timestamps": timestamps, "states": states}, self.width)
            poses, grippers = np.split(checked.pop("states"), [len(POSE)], axis=1)
            return {"poses": poses, "grippers": grippers, **checked}
        if (states is None) != (self.state_names is None):
            given = {"poses": poses, "grippers": grippers, "states": states}
            found = " and ".join(name for name, value in given.items() if value is not None) or "no state"
            expected = (
                f"states of {' '.join(self.state_names)}" if self.state_names else "poses and grippers, or states"
            )
            raise ServerError("malformed", f"not sent: {found} given; this server expects {expected}")
        if self.state_names is not None:
            checked = _numbers({"timestamps": timestamps, "states": states}, self.width)
            return {"states": checked["states"], "timestamps": checked["timestamps"]}
        checked = _numbers({"timestamps": timestamps, "poses": poses, "grippers": grippers}, self.width)
        return {name: checked[name] for name in ("poses", "grippers", "timestamps")}

    def frames(self, images: Images, kinds: tuple[type, ...], count: int) -> Frames:
        """Returns one image for each timestamp, by camera where there are several; ServerError otherwise."""
        if len(self.cameras) == 1:
            only = (
                images[self.cameras[0]] if isinstance(images, Mapping) and set(images) == set(self.cameras) else images
            )
            return _frames(only, kinds, count)
        if not isinstance(images, Mapping) or set(images) != set(self.cameras):
            given = sorted(map(str, images)) if isinstance(images, Mapping) else type(images).__name__
            raise ServerError(
                "wrong_frames", f"not sent: images are {given}; expected {count} by camera: {', '.join(self.cameras)}"
            )
        return {camera: _frames(images[camera], kinds, count, f"images.{camera}") for camera in self.cameras}


def observation(
    kind: str,
    images: Images,
    poses: ArrayLike | None = None,
    grippers: ArrayLike | None = None,
    timestamps: ArrayLike | None = None,
    *,
    states: ArrayLike | None = None,
    asked: Asked = Asked(None, ("image",)),
    extras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Builds a message of the line protocol: "observation", or "inspect".

    Args:
        kind: its type.
        images, poses, grippers, timestamps, states: as for ``LineClient.infer``.
        asked: the form that the server expects.
        extras: optional entries, see ``extra_entries``.

    Raises:
        ServerError: the values are not an observation as the server expects it; nothing is sent.
    """
    numbers = asked.numbers(poses, grippers, timestamps, states)
    return line_observation(kind, asked.frames(images, (bytes,), len(numbers["timestamps"])), numbers, extras or {})


def line_observation(kind: str, frames: Frames, measured: Measured, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Builds the same message of what was checked; images are encoded JPEGs or PNGs."""
    return {
        "type": kind,
        "images": _base64(frames) if isinstance(frames, list) else {key: _base64(own) for key, own in frames.items()},
        **{name: value.tolist() for name, value in measured.items()},
        "send_timestamp": time.time(),
        **extras,
    }


def extra_entries(
    request_id: str | None, continuation: Continuation | None, camera_times: Mapping[str, float] | None
) -> dict[str, Any]:
    """Returns the optional entries of an observation, as far as they are given."""
    return {
        **({} if request_id is None else {REQUEST_ID: request_id}),
        **({} if continuation is None else {"continuation": continuation.to_message()}),
        **({} if not camera_times else {CAMERA_TIMES: dict(camera_times)}),
    }


def _base64(images: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(image).decode("ascii") for image in images]


def _numbers(given: Mapping[str, ArrayLike | None], width: int) -> Measured:
    """Checks timestamps (To,), which come first, poses (To, 7), grippers (To, 1) or states (To, D): all are finite.

    ServerError otherwise.
    """
    found: Measured = {}
    for name, value in given.items():
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ServerError("malformed", f"not sent: {name} are no numbers: {error}") from error
        count = len(found["timestamps"]) if found else array.shape[0] if array.ndim else 0
        columns = {"poses": (len(POSE),), "grippers": (1,), "states": (width,)}
        shape = (count, *columns.get(name, ()))
        if name == "grippers" and array.size == count:
            array = array.reshape(shape)
        if array.shape != shape or count == 0:
            raise ServerError("malformed", f"not sent: {name} have shape {array.shape}; expected {shape}")
        if not np.isfinite(array).all():
            raise ServerError("bad_state", f"not sent: {name} hold NaN or infinity: {array.tolist()}")
        found[name] = array
    return found


def _frames(images: Any, kinds: tuple[type, ...], count: int, where: str = "images") -> list[Any]:
    """Checks that there is one image for each timestamp; ServerError otherwise."""
    if not isinstance(images, Sequence | np.ndarray) or isinstance(images, str | bytes):
        raise ServerError("malformed", f"not sent: {where} are {type(images).__name__}; expected {count} pictures")
    if len(images) != count:
        raise ServerError("wrong_frames", f"not sent: {len(images)} {where} for {count} timestamps")
    frames = [bytes(image) if isinstance(image, bytearray | memoryview) else image for image in images]
    for index, image in enumerate(frames):
        if not isinstance(image, kinds):
            expected = " or ".join(
                {"bytes": "an encoded JPEG or PNG (bytes)"}.get(k.__name__, "a frame") for k in kinds
            )
            raise ServerError("bad_image", f"not sent: {where}[{index}] is {type(image).__name__}; expected {expected}")
    return frames


def read_chunk(reply: Mapping[str, Any], key: str, width: int) -> Chunk:
    """Reads the chunk of a reply; ServerError unless it holds finite actions (n, ``width``), each with its time."""
    try:
        actions, times = (np.asarray(reply[name], dtype=np.float64) for name in (key, "timestamps"))
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError("malformed", f"the answer holds no chunk of actions with their times: {error!r}") from error
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != width or times.shape != (len(actions),):
        raise ServerError("malformed", f"the answer's actions are {actions.shape}, their times {times.shape}")
    if not (np.isfinite(actions).all() and np.isfinite(times).all()):
        raise ServerError("malformed", "the answer's actions or times hold NaN or infinity")
    return Chunk(actions, times, reply)
