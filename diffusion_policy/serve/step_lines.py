"""Log lines of steps, as far as they are known before the policy runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusion_policy.serve.engine.policy_engine import FloatArray
from diffusion_policy.serve.transport.continuation import REQUEST_ID
from diffusion_policy.serve.transport.observations import CAMERA_TIMES
from diffusion_policy.serve.transport.protocol import Observation
from diffusion_policy.serve.transport.request import Arrival
from diffusion_policy.spec import INTERVENTION


def describe_observation(observation: Observation, arrival: Arrival) -> dict[str, Any]:
    """Returns states and times; times on the client's and the server's clocks are logged but never subtracted."""
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
    if observation.camera_times:
        measured[CAMERA_TIMES] = dict(observation.camera_times)
    if observation.continuation is not None:
        measured["continuation"] = observation.continuation.to_message()
    named = {} if observation.request_id is None else {REQUEST_ID: observation.request_id}
    return {**named, "input": measured, **times}


def times_of(arrival: Arrival) -> dict[str, Any]:
    """Returns the timing entry that every log line has."""
    return {"timing": {"server_recv": arrival.received}}


def without_step(line: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the line of an observation without a step number, which only answered ones have."""
    return {name: value for name, value in line.items() if name != "step"}


def loggable(sequence: FloatArray) -> list[list[float | None]]:
    """Returns numbers (t, Da) for JSON, with None instead of NaN and infinity."""
    return [[value if math.isfinite(value) else None for value in row] for row in sequence.tolist()]
