"""How a requested chunk is to continue the one that the arm is executing: an optional part of an observation.

    "continuation": {"mode": "rtc", "actions": [[D] ...], "committed": 4}

Row i of ``actions`` is what remains of the chunk under execution at the newest observation's time plus i control
periods, like row i of the answer's ``action``. The first ``committed`` rows will have been executed when the answer
arrives. A server whose policy lacks the mode answers ``unsupported``; its metadata lists the modes that it has in
``continuations``. There is no fallback to a plain request.

Legend of shapes: m remaining steps, D numbers in an action of a message.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.serve.transport.errors import ProtocolError

FloatArray = NDArray[np.float64]
Mode = Literal["warm_start", "rtc"]
MODES: tuple[Mode, ...] = get_args(Mode)
CONTINUATIONS = "continuations"  # in metadata: modes that the server has
REQUEST_ID = "request_id"  # in an observation: a text chosen by the client, repeated in both logs and in the answer
# Rows and characters that a message may hold; a horizon is 8 to 64 steps.
_MOST_ROWS = 1024
_LONGEST_ID = 64


@dataclass(frozen=True)
class Continuation:
    """What remains of the chunk under execution.

    Attributes:
        mode: ``warm_start``: denoising starts from these actions; ``rtc``: the committed ones are kept while the others
            are denoised (real-time chunking).
        actions: (m, D) absolute, rotations as quaternions; row i is for the newest observation's time plus i periods.
        committed: number of first rows that are executed before the answer arrives, 0 to m.
    """

    mode: Mode
    actions: FloatArray
    committed: int

    def to_message(self) -> dict[str, Any]:
        """Returns the entry of an observation message, plain JSON."""
        return {"mode": self.mode, "actions": self.actions.tolist(), "committed": self.committed}

    def with_actions(self, actions: FloatArray) -> Continuation:
        """Returns the same continuation with other actions (m, D)."""
        return replace(self, actions=actions)


def read_continuation(entry: Any, width: int) -> Continuation | None:
    """Reads the untrusted entry of an observation; None if there is none.

    Args:
        entry: the decoded entry.
        width: D.

    Raises:
        ProtocolError: malformed, or bad_state for NaN or infinity.
    """
    if entry is None:
        return None
    if not isinstance(entry, dict) or entry.get("mode") not in MODES:
        found = repr(entry.get("mode"))[:40] if isinstance(entry, dict) else type(entry).__name__
        raise ProtocolError("malformed", f"continuation is {found}; expected an object with mode {' or '.join(MODES)}")
    rows, committed = entry.get("actions"), entry.get("committed")
    if isinstance(rows, np.ndarray):
        rows = rows.tolist()
    if not isinstance(rows, list) or not 0 < len(rows) <= _MOST_ROWS:
        raise ProtocolError("malformed", f"continuation.actions is not a list of 1 to {_MOST_ROWS} actions")
    if not all(isinstance(row, list) and len(row) == width and all(map(_is_number, row)) for row in rows):
        raise ProtocolError("malformed", f"continuation.actions holds a row that is not {width} numbers")
    if type(committed) is not int or not 0 <= committed <= len(rows):
        raise ProtocolError("malformed", f"continuation.committed is not a whole number from 0 to {len(rows)}")
    try:
        actions = np.array(rows, dtype=np.float64)
    except OverflowError as error:
        raise ProtocolError("malformed", f"continuation.actions: {error}") from error
    if not np.isfinite(actions).all():
        raise ProtocolError("bad_state", "continuation.actions holds NaN or infinity")
    return Continuation(entry["mode"], actions, committed)


def read_request_id(value: Any) -> str | None:
    """Reads the client's id of a request, printable ASCII; raises ProtocolError (malformed) otherwise."""
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_ID or not (value.isascii() and value.isprintable()):
        raise ProtocolError("malformed", f"{REQUEST_ID} is not 1 to {_LONGEST_ID} printable ASCII characters")
    return value


def check_supported(continuation: Continuation | None, supported: Collection[str]) -> None:
    """Refuses a mode that the served policy lacks.

    Raises:
        ProtocolError: unsupported.
    """
    if continuation is not None and continuation.mode not in supported:
        offered = " and ".join(sorted(supported)) or "none"
        raise ProtocolError(
            "unsupported",
            f"the served policy cannot continue a chunk by {continuation.mode}; it offers {offered}. Ask without a "
            "continuation (chunk strategy skip or ensemble)",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
