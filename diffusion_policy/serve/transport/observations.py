"""Observations as both transports carry them, and their form for one policy.

For a pose and a gripper, observations carry ``poses`` and ``grippers``, as robot clients have always sent them. For any
other policy they carry ``states``, in the order of a layout; with several cameras, images by key.

Legend of shapes: To observation steps, D numbers of the layout, G grippers, K cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.serve.transport.continuation import Continuation
from diffusion_policy.spec import POSE, POSE_GRIPPER, ActionLayout, ImageArray

FloatArray = NDArray[np.float64]
CAMERA_TIMES = "camera_times"  # in an observation: when the newest frame of each camera was captured
STATE_NAMES = "state_names"  # in metadata: names of the numbers in ``states``, where observations carry these
_POSE_AND_GRIPPER = ActionLayout.of(POSE_GRIPPER)


@dataclass(frozen=True)
class Observation:
    """The last n_obs_steps steps, oldest first.

    Attributes:
        images: (K times To) encoded JPEGs or PNGs, or raw frames (H, W, 3) uint8 RGB (new transport only); one camera
            after another, in the policy's order.
        poses: (To, 7) float64, meters and quaternion xyzw; (To, 0) where ``measured`` is given.
        grippers: (To, 1) float64, 1 = open; (To, 0) as above.
        timestamps: (To,) seconds on the client's clock.
        send_timestamp: unix seconds on the client's clock; None from the oldest clients.
        inspect: asks for the model's input instead of an action; see ``inspection_reply``.
        decoded: frames (H, W, 3) uint8 RGB of the images that are already decoded; None for the others.
        intervention: whether a person drives at the newest step.
        measured: (To, D) states, where the layout is not a pose and a gripper.
        request_id: the client's id of the request.
        continuation: what remains of the chunk that the arm is executing.
        camera_times: when the newest frame of each camera was captured, on the clock of ``timestamps``; empty if
            unknown.
    """

    images: tuple[bytes | ImageArray, ...]
    poses: FloatArray
    grippers: FloatArray
    timestamps: FloatArray
    send_timestamp: float | None = None
    inspect: bool = False
    decoded: tuple[ImageArray | None, ...] | None = None
    intervention: bool = False
    measured: FloatArray | None = None
    request_id: str | None = None
    continuation: Continuation | None = None
    camera_times: Mapping[str, float] = field(default_factory=dict)

    @property
    def states(self) -> FloatArray:
        """(To, D) states in the order of the layout: by default (To, 8), ``spec.POSE_GRIPPER``."""
        return np.concatenate([self.poses, self.grippers], axis=1) if self.measured is None else self.measured


@dataclass(frozen=True)
class MessageForm:
    """The form of the observations for one policy.

    Attributes:
        n_obs_steps: To, the number of steps in an observation.
        layout: layout of states and actions, rotations as quaternions.
        cameras: the policy's image keys, in its order.
    """

    n_obs_steps: int
    layout: ActionLayout = _POSE_AND_GRIPPER
    cameras: tuple[str, ...] = ("image",)

    @property
    def is_pose_and_gripper(self) -> bool:
        """Whether states are carried as ``poses`` and ``grippers``."""
        return self.layout.names == POSE_GRIPPER

    def metadata(self) -> dict[str, Any]:
        """Returns what a client must know in addition to the action's names and the cameras."""
        return {} if self.is_pose_and_gripper else {STATE_NAMES: list(self.layout.names)}

    def observation(
        self, images: Sequence[bytes | ImageArray], states: FloatArray, timestamps: FloatArray
    ) -> Observation:
        """Builds an observation of images (K times To), states (To, D) and timestamps (To,)."""
        if self.is_pose_and_gripper:
            poses, grippers = np.split(states, [len(POSE)], axis=1)
            return Observation(tuple(images), poses, grippers, timestamps)
        nothing = np.empty((len(states), 0))
        return Observation(tuple(images), nothing, nothing, timestamps, measured=states)

    def with_grippers(self, observation: Observation, convert: Callable[[FloatArray], FloatArray]) -> Observation:
        """Returns the observation with its grippers (To, G) converted to another scale."""
        if observation.measured is None:
            return replace(observation, grippers=convert(observation.grippers))
        grippers = convert(self.layout.grippers(observation.measured))
        return replace(observation, measured=self.layout.replaced(observation.measured, grippers=grippers))

    def with_continued(self, observation: Observation, convert: Callable[[FloatArray], FloatArray]) -> Observation:
        """Returns the observation with the grippers of the chunk that it continues converted to another scale."""
        if observation.continuation is None:
            return observation
        actions = observation.continuation.actions
        converted = self.layout.replaced(actions, grippers=convert(self.layout.grippers(actions)))
        return replace(observation, continuation=observation.continuation.with_actions(converted))
