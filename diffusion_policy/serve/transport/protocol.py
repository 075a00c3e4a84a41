"""The line protocol of the existing robot clients: one JSON object per line over TCP, UTF-8, "\\n" at the end.

    -> {"type": "reset"}                                      <- {"type": "reset_ack"}
    -> {"type": "hello", "token": ...}                        <- {"type": "metadata", ...}
    -> {"type": "observation", "images": [base64 JPEG, oldest first], "poses": [[7] ...], "grippers": [[1] ...],
        "timestamps": [s ...], "send_timestamp": unix s}      <- {"type": "action", "action": [[8] ...]}
        optional: "intervention": true, a person drives instead of the policy (logged; the answer does not change)
                  "request_id": text, which the log and the answer repeat
                  "camera_times": {camera: s}, when the newest frame of each was captured, on the clock of "timestamps"
                  "continuation": how the answer continues the chunk under execution, see ``transport.continuation``
                                                              <- {"type": "error", "code": ..., "message": ...}

That is the form of a policy whose action is a pose and a gripper, with one camera. For any other action, metadata holds
"state_names": D names (rotations as quaternions, several arms as "left.x"), and instead of "poses" and "grippers" an
observation carries "states": [[D] ...] in that order, which each row of "action" follows too. With several cameras
("cameras" in metadata) "images" is an object: {"front": [base64 JPEG, oldest first], "wrist": [...]}.

Old clients never send "hello", read one line per observation, hold their pose when its type is not "action", and ignore
fields they do not know. "inspect" is an observation that is answered with the model's input and no action, where the
server allows it (scripts/check_parity.py). The second transport carries the same messages as msgpack. A message is
untrusted: everything in it is checked before any of it is used, sizes first.

This module imports neither torch nor the policy, so that a robot's machine can use it alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.geometry import SERVED_NORM_SLACK, check_unit_quaternions
from diffusion_policy.serve.transport.continuation import REQUEST_ID, read_continuation, read_request_id
from diffusion_policy.serve.transport.errors import ENDING as ENDING
from diffusion_policy.serve.transport.errors import ErrorCode as ErrorCode
from diffusion_policy.serve.transport.errors import ProtocolError as ProtocolError
from diffusion_policy.serve.transport.observations import CAMERA_TIMES
from diffusion_policy.serve.transport.observations import MessageForm as MessageForm
from diffusion_policy.serve.transport.observations import Observation as Observation
from diffusion_policy.spec import INTERVENTION, POSE, ActionLayout, ImageArray, SpecError

DEFAULT_PORT = 8007


@dataclass(frozen=True)
class Limits:
    """Limits on the size of a message.

    Attributes:
        message_bytes: size of one line.
        image_bytes: size of one encoded image.
        image_pixels: pixels of one image, read from its header before it is decoded.
    """

    message_bytes: int = 16 * 2**20
    image_bytes: int = 4 * 2**20
    image_pixels: int = 4096 * 2160

    def __post_init__(self) -> None:
        """Refuses limits that no message could meet."""
        for name in ("message_bytes", "image_bytes", "image_pixels"):
            if getattr(self, name) < 1:
                raise WorkspaceError(f"limits.{name} is {getattr(self, name)}; expected 1 or more")


@dataclass(frozen=True)
class Reset:
    """Start of an episode."""


@dataclass(frozen=True)
class Hello:
    """A request for the server's metadata, with the token."""

    token: str | None = None


Message = Reset | Hello | Observation


def parse_line(line: bytes, form: MessageForm, limits: Limits) -> Message:
    """Parses one line from a client.

    Raises:
        ProtocolError: the line is refused; its code is sent to the client.
    """
    if len(line) > limits.message_bytes:
        raise ProtocolError("oversized", f"message of {len(line)} bytes; at most {limits.message_bytes} are read")
    try:
        message = json.loads(line, parse_constant=_refuse_constant)
    except (
        ValueError,
        RecursionError,
    ) as error:  # also: not UTF-8, or an integer of thousands of digits
        raise ProtocolError("malformed", f"not one JSON object per line: {error}") from error
    return parse_message(message, form, limits)


def parse_message(message: Any, form: MessageForm, limits: Limits) -> Message:
    """Parses a decoded message of either transport; raises ProtocolError with the code for the client."""
    if not isinstance(message, dict):
        raise ProtocolError("malformed", f"expected an object, found {type(message).__name__}")
    kind = message.get("type")
    match kind if isinstance(kind, str) else None:  # an array cannot be compared with a word
        case "reset":
            return Reset()
        case "hello":
            token = message.get("token")
            return Hello(token if isinstance(token, str) else None)
        case "observation" | "inspect":
            return parse_observation(message, form, limits)
        case _:
            shown = repr(kind[:40]) if isinstance(kind, str) else f"is {type(kind).__name__}"
            raise ProtocolError("unknown_type", f"type {shown}; expected observation, reset or hello")


def parse_observation(message: Mapping[str, Any], form: MessageForm, limits: Limits) -> Observation:
    """Checks an observation message and decodes its base64; images stay encoded.

    Raises:
        ProtocolError: malformed, oversized, wrong_frames or bad_state.
    """
    n_obs_steps, layout = form.n_obs_steps, form.layout
    _check_form(message, form)
    steps = {"images": _image_lists(message, form)}
    carried = ("poses", "grippers") if form.is_pose_and_gripper else ("states",)
    steps |= {key: _sequence(message.get(key), key, n_obs_steps) for key in (*carried, "timestamps")}
    if form.is_pose_and_gripper:
        poses = _numbers(steps["poses"], (n_obs_steps, len(POSE)), "poses")
        _check_quaternions(poses, ActionLayout.of(POSE), "poses")
    else:
        states = _numbers(steps["states"], (n_obs_steps, len(layout.names)), "states", layout.names)
        _check_quaternions(states, layout, "states")
    timestamps = _numbers(steps["timestamps"], (n_obs_steps,), "timestamps")
    if (np.diff(timestamps) < 0).any():
        raise ProtocolError("bad_state", f"timestamps {timestamps.tolist()} run backwards; expected oldest first")
    sent, intervention = message.get("send_timestamp"), message.get(INTERVENTION, False)
    if not isinstance(intervention, bool):
        raise ProtocolError("malformed", f"{INTERVENTION} is {type(intervention).__name__}; expected true or false")
    continuation = read_continuation(message.get("continuation"), len(layout.names))
    if continuation is not None:
        _check_quaternions(continuation.actions, layout, "continuation.actions")
    images = tuple(_read_image(image, limits) for image in steps["images"])
    if form.is_pose_and_gripper:
        states = np.concatenate([poses, _numbers(steps["grippers"], (n_obs_steps, 1), "grippers")], axis=1)
    return replace(
        form.observation(images, states, timestamps),
        send_timestamp=None if sent is None else float(_numbers([sent], (1,), "send_timestamp")[0]),
        inspect=message.get("type") == "inspect",
        intervention=intervention,
        request_id=read_request_id(message.get(REQUEST_ID)),
        camera_times=_camera_times(message.get(CAMERA_TIMES), form),
        continuation=continuation,
    )


def _camera_times(value: Any, form: MessageForm) -> dict[str, float]:
    """Reads the capture time of each camera's newest frame; empty if the message has none."""
    if value is None:
        return {}
    if not isinstance(value, dict) or set(value) != set(form.cameras):
        found = sorted(map(str, value))[:8] if isinstance(value, dict) else type(value).__name__
        raise ProtocolError("malformed", f"{CAMERA_TIMES} is {found}; expected seconds by camera: {form.cameras}")
    times = _numbers([value[camera] for camera in form.cameras], (len(form.cameras),), CAMERA_TIMES)
    return dict(zip(form.cameras, times.tolist(), strict=True))


def _check_form(message: Mapping[str, Any], form: MessageForm) -> None:
    """Refuses a message for another policy; the error names what it carries and what is expected."""
    n_obs_steps, forms = form.n_obs_steps, [key for key in ("poses", "grippers", "states") if key in message]
    if form.is_pose_and_gripper and forms == ["states"]:
        expected = f"poses ({n_obs_steps}, 7) and grippers ({n_obs_steps}, 1)"
    elif not form.is_pose_and_gripper and "states" not in forms:
        expected = f"states ({n_obs_steps}, {len(form.layout.names)}): {' '.join(form.layout.names)}"
    else:
        return
    raise ProtocolError("malformed", f"the message carries {' and '.join(forms) or 'no state'}; expected {expected}")


def _image_lists(message: Mapping[str, Any], form: MessageForm) -> list[Any]:
    """Returns the images, camera by camera."""
    images = message.get("images")
    if len(form.cameras) == 1:
        return _sequence(images, "images", form.n_obs_steps)
    expected = f"one list of {form.n_obs_steps} by camera: {', '.join(form.cameras)}"
    if not isinstance(images, dict):
        raise ProtocolError("malformed", f"images is {type(images).__name__}; expected {expected}")
    if set(images) != set(form.cameras):
        raise ProtocolError("wrong_frames", f"images has {sorted(map(str, images))}; expected {expected}")
    lists = [_sequence(images[camera], f"images.{camera}", form.n_obs_steps, "images") for camera in form.cameras]
    return [image for camera in lists for image in camera]


def _check_quaternions(states: NDArray[np.float64], layout: ActionLayout, key: str) -> None:
    rotations = np.moveaxis(layout.rotations(states), 1, 0)
    for arm, quaternions in zip(layout.labels("rotation"), rotations, strict=True):
        try:
            check_unit_quaternions(quaternions, f"{key} of {arm}" if arm else key, tolerance=SERVED_NORM_SLACK)
        except SpecError as error:
            raise ProtocolError("bad_state", str(error)) from error


def _refuse_constant(name: str) -> float:
    raise ProtocolError("bad_state", f"{name} is not a position that an arm can be at")


def _sequence(value: Any, key: str, n_obs_steps: int, kind: str | None = None) -> list[Any]:
    if isinstance(value, np.ndarray) and value.ndim:
        value = list(value) if (kind or key) == "images" else value.tolist()
    if not isinstance(value, list):
        raise ProtocolError("malformed", f"{key} is {type(value).__name__}; expected a list of {n_obs_steps}")
    if len(value) != n_obs_steps:
        raise ProtocolError("wrong_frames", f"{key} has {len(value)} entries; expected {n_obs_steps}, oldest first")
    return value


def _numbers(values: Sequence[Any], shape: tuple[int, ...], key: str, names: Sequence[str] = ()) -> NDArray[np.float64]:
    flat = values if len(shape) == 1 else [number for row in values if isinstance(row, list) for number in row]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in flat):
        raise ProtocolError("malformed", f"{key} holds something that is not a number")
    try:
        array = np.array(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError("malformed", f"{key} is not a table of numbers: {error}") from error
    if array.shape != shape:
        listed = f": {' '.join(names)}" if names else ""
        raise ProtocolError("malformed", f"{key} has shape {array.shape}; expected {shape}{listed}")
    if not np.isfinite(array).all():
        raise ProtocolError("bad_state", f"{key} holds NaN or infinity")
    return array


def _read_image(image: Any, limits: Limits) -> bytes | ImageArray:
    """Reads base64 text (lines), encoded bytes or a raw RGB frame (new transport), without decoding the image."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ProtocolError("bad_image", f"a frame is {image.dtype} {image.shape}; expected uint8 (H, W, 3) RGB")
        if image.size > 3 * limits.image_pixels:
            raise ProtocolError("oversized", f"a frame of {image.size // 3} pixels; at most {limits.image_pixels}")
        return image
    if not isinstance(image, str | bytes):
        raise ProtocolError("malformed", f"an image is {type(image).__name__}; expected base64 text")
    size = len(image) if isinstance(image, bytes) else len(image) * 3 // 4
    if size > limits.image_bytes:
        raise ProtocolError("oversized", f"an image of {size} bytes; at most {limits.image_bytes} are read")
    if isinstance(image, bytes):
        return image
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError("bad_image", f"an image is not base64: {_why_not_base64(image) or error}") from error


def _why_not_base64(text: str) -> str | None:
    """Describes what violates the standard base64 alphabet (RFC 4648, section 4); None if only the padding is wrong."""
    if text.startswith("data:"):
        return f"it begins with the prefix {text.partition(',')[0][:40]!r}; expected only what follows the comma"
    odd = re.search(r"[^A-Za-z0-9+/=]", text)
    if odd is None:
        return None
    sign, where = odd.group(), f"at character {odd.start()}"
    if sign.isspace():
        kind = "a newline" if sign in "\r\n" else "white space"
        return f"it holds {kind} {where}; expected one line without any"
    if sign in "-_":
        return f"it holds {sign!r} {where}, from the URL-safe alphabet; expected the standard one, with + and /"
    return f"it holds {sign!r} {where}; expected letters, digits, +, / and ="


def encode_line(message: Mapping[str, Any]) -> bytes:
    """Encodes a reply as a line; NaN cannot be encoded."""
    return json.dumps(message, allow_nan=False, separators=(",", ":"), default=_array_to_json).encode() + b"\n"


def _array_to_json(array: Any) -> dict[str, Any]:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{type(array).__name__} cannot be sent")
    text = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "base64": text}


def array_from_json(entry: Mapping[str, Any]) -> NDArray[Any]:
    """Decodes an array of an "inspection" reply."""
    return np.frombuffer(base64.b64decode(entry["base64"]), np.dtype(entry["dtype"])).reshape(entry["shape"])


def action_reply(actions: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Returns the reply with actions (n_action_steps, D), finite."""
    return {"type": "action", "action": actions.tolist()}


def error_reply(code: ErrorCode, message: str) -> dict[str, Any]:
    """Returns the reply without actions: old clients ignore its type and hold their pose."""
    return {"type": "error", "code": code, "message": message}
