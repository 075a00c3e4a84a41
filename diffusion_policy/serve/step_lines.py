"""A step of a run as a line of its log, as far as it is known before the policy has run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusion_policy.serve.engine.policy_engine import FloatArray
from diffusion_policy.serve.transport.protocol import Observation
from diffusion_policy.serve.transport.request import Arrival
from diffusion_policy.spec import INTERVENTION


def describe_observation(observation: Observation, arrival: Arrival) -> dict[str, Any]:
    """What was measured and when; clocks of client and server stand side by side and are never subtracted."""
    states = observation.states
    times = times_of(arrival)
    times["timing"]["client_obs"] = float(observation.timestamps[-1])
    if observation.send_timestamp is not None:
        times["timing"]["client_send"] = observation.send_timestamp
    measured: dict[str, Any] = {
        "state": states[-1].tolist(),
        "states": states.tolist(),
        "timestamps": observation.timestamps.tolist(),
    }
    if observation.intervention:
        measured[INTERVENTION] = True
    return {"input": measured, **times}


def times_of(arrival: Arrival) -> dict[str, Any]:
    """The entry that every line has."""
    return {"timing": {"server_recv": arrival.received}}


def without_step(line: Mapping[str, Any]) -> dict[str, Any]:
    """An observation's line without the number that only answered ones have."""
    return {name: value for name, value in line.items() if name != "step"}


def loggable(sequence: FloatArray) -> list[list[float | None]]:
    """Numbers (t, Da) for JSON, which has no NaN: None in its place."""
    return [[value if math.isfinite(value) else None for value in row] for row in sequence.tolist()]
