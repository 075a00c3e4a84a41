"""Error codes of the protocol, and the error of a refused message."""

from __future__ import annotations

from typing import Literal

from diffusion_policy.errors import WorkspaceError

ErrorCode = Literal[
    "malformed",  # not one JSON object a line, or fields of the wrong type
    "oversized",  # more bytes or pixels than the limits allow
    "unknown_type",  # a message type this server does not know
    "wrong_frames",  # not n_obs_steps images, poses, grippers and timestamps, or the wrong cameras
    "bad_image",  # does not decode
    "bad_state",  # NaN, or an invalid quaternion
    "stale",  # older than the limit, or than the previous observation
    "superseded",  # a newer observation was waiting when its turn came
    "late",  # the answer took longer than its deadline, or the client was gone by then
    "rate",  # more messages a second than the limits allow
    "refused",  # the motion guard refused the chunk
    "unsupported",  # a continuation that the served policy lacks
    "busy",  # another robot is being served
    "unauthorized",  # no token, or a wrong one
    "internal",  # an unforeseen failure; the session ends
]
# After these the connection is closed: framing or trust is lost, or another session holds the robot lock.
ENDING: frozenset[ErrorCode] = frozenset({"oversized", "busy", "unauthorized", "internal"})


class ProtocolError(WorkspaceError):
    """A refused message; ``code`` is sent to the client and logged."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
