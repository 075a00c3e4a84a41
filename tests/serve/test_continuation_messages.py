"""The optional parts of an observation: a request's id, the times of its cameras, and the chunk that it continues."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_factory import N_ACTIONS, N_OBS, FakeEngine, ServerThread, jpeg, observation_message, settings

from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.serve.client import Continuation, LineClient, ServerError, WebSocketClient
from diffusion_policy.serve.transport.protocol import Limits, MessageForm, Observation, ProtocolError, parse_line

ROW = [0.5, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0, 1.0]
FORM = MessageForm(N_OBS)
GOOD = {"mode": "rtc", "actions": [ROW, ROW], "committed": 1}


def parsed(**changes: Any) -> Observation:
    message = parse_line(json.dumps(observation_message(**changes)).encode(), FORM, Limits())
    assert isinstance(message, Observation)
    return message


def test_a_continuation_is_read_as_it_was_written() -> None:
    found = parsed(continuation=GOOD, request_id="run-7").continuation
    assert found is not None
    assert found.to_message() == GOOD
    assert parsed().continuation is None
    assert (parsed(request_id="run-7").request_id, parsed().request_id) == ("run-7", None)


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ([], "malformed"),
        ({**GOOD, "mode": "wait"}, "malformed"),
        ({**GOOD, "mode": ["rtc"]}, "malformed"),
        ({**GOOD, "actions": []}, "malformed"),
        ({**GOOD, "actions": [ROW] * 1025}, "malformed"),
        ({**GOOD, "actions": [ROW, ROW[:7]]}, "malformed"),
        ({**GOOD, "actions": [ROW, ["x"] * 8]}, "malformed"),
        ({**GOOD, "actions": [[True] * 8]}, "malformed"),
        ({**GOOD, "actions": [[10**400] * 8]}, "malformed"),
        ({**GOOD, "committed": 3}, "malformed"),
        ({**GOOD, "committed": -1}, "malformed"),
        ({**GOOD, "committed": True}, "malformed"),
        ({**GOOD, "committed": None}, "malformed"),
        ({"mode": "rtc", "committed": 0}, "malformed"),
    ],
)
def test_whatever_is_not_a_continuation_is_refused(entry: Any, code: str) -> None:
    with pytest.raises(ProtocolError, match="continuation") as caught:
        parsed(continuation=entry)
    assert caught.value.code == code


def test_infinity_in_a_continuation_is_refused() -> None:
    line = json.dumps(observation_message(continuation={**GOOD, "actions": [[1e308] * 8]})).replace("1e+308", "1e999")
    with pytest.raises(ProtocolError, match="NaN or infinity") as caught:
        parse_line(line.encode(), FORM, Limits())
    assert caught.value.code == "bad_state"


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "\u00e9", 7, ["a"]])
def test_a_request_s_name_is_short_plain_text(name: Any) -> None:
    with pytest.raises(ProtocolError, match="request_id"):
        parsed(request_id=name)


class ContinuingEngine(FakeEngine):
    """Keeps what it was asked to continue."""

    def __init__(self) -> None:
        super().__init__(self.keep)
        self.asked: list[Continuation | None] = []

    def keep(self, observation: Observation) -> None:
        self.asked.append(observation.continuation)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "continuations": ["rtc"]}


@pytest.mark.parametrize("transport", ["line", "websocket"])
def test_a_server_takes_what_its_policy_has_and_refuses_the_rest_by_name(transport: str, tmp_path: Path) -> None:
    observed = ([jpeg(0), jpeg(1)], [ROW[:7]] * 2, [1.0, 1.0])
    engine = ContinuingEngine()
    words = ["websocket_port=0", "gripper_scale=percent"]
    with ServerThread(engine, settings(tmp_path, *words)) as server:
        port = server.ports[transport]
        client: Any = LineClient(port=port) if transport == "line" else WebSocketClient(f"ws://127.0.0.1:{port}")
        with client:
            rows = np.array([ROW] * 3) * [1, 1, 1, 1, 1, 1, 1, 100]
            chunk = client.infer(*observed, [0.1, 0.2], request_id="a-1", continuation=Continuation("rtc", rows, 2))
            assert (len(chunk.actions), chunk.reply["request_id"]) == (N_ACTIONS, "a-1")
            with pytest.raises(ServerError, match="by warm_start; it offers rtc") as caught:
                client.infer(*observed, [0.2, 0.3], request_id="a-2", continuation=Continuation("warm_start", rows, 0))
            assert caught.value.code == "unsupported"
            assert "request_id" not in client.infer(*observed, [0.3, 0.4]).reply
    [first, none] = engine.asked
    assert none is None
    assert first is not None
    np.testing.assert_array_equal(first.actions, [ROW] * 3)  # the gripper in the policy's scale
    lines = read_lines(next(tmp_path.iterdir()))[1]
    assert [(line.get("event", "step"), line.get("request_id")) for line in lines] == [
        ("step", "a-1"),
        ("error", "a-2"),
        ("step", None),
    ]
    assert lines[0]["input"]["continuation"] == {"mode": "rtc", "actions": [ROW] * 3, "committed": 2}


@pytest.mark.parametrize(
    "times", [[], {}, {"image": "now"}, {"image": None}, {"image": 0.1, "wrist": 0.1}, {"wrist": 0.1}]
)
def test_camera_times_are_seconds_of_each_camera(times: Any) -> None:
    with pytest.raises(ProtocolError, match="camera_times"):
        parsed(camera_times=times)
    assert parsed(camera_times={"image": 0.1}).camera_times == {"image": 0.1}
    assert parsed().camera_times == {}


class TwoCameras(FakeEngine):
    """Observes two cameras."""

    form = MessageForm(N_OBS, cameras=("front", "wrist"))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "cameras": ["front", "wrist"]}


@pytest.mark.parametrize("transport", ["line", "websocket"])
def test_a_camera_that_lags_behind_is_named(transport: str, tmp_path: Path) -> None:
    words = ["websocket_port=0", "cameras.max_lag_s=0.2"]
    with ServerThread(TwoCameras(), settings(tmp_path, *words)) as server:
        port = server.ports[transport]
        client: Any = LineClient(port=port) if transport == "line" else WebSocketClient(f"ws://127.0.0.1:{port}")
        with client:

            def ask(step: int, wrist: float) -> Any:
                images = {camera: [jpeg(step), jpeg(step + 1)] for camera in ("front", "wrist")}
                times = [step / 10, (step + 1) / 10]
                captured = {"front": times[1], "wrist": times[1] + wrist}
                return client.infer(images, states=[ROW, ROW], timestamps=times, camera_times=captured)

            assert len(ask(0, -0.15).actions) == N_ACTIONS
            for wrist in (-0.25, 0.25):
                with pytest.raises(
                    ServerError, match=r"camera wrist: .* the limit is 0.2 s \(cameras.max_lag_s\)"
                ) as caught:
                    ask(1, wrist)
                assert caught.value.code == "stale"
            assert len(ask(2, 0.0).actions) == N_ACTIONS
    lines = read_lines(next(tmp_path.iterdir()))[1]
    assert lines[0]["input"]["camera_times"] == {"front": 0.1, "wrist": pytest.approx(-0.05)}
