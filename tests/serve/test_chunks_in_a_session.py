"""What a session remembers from chunk to chunk: seams, remainders, times, the gripper's dwell."""

from pathlib import Path

import numpy as np
import pytest
from serve_factory import N_ACTIONS, FakeEngine, ServerThread, observation_message, settings

from diffusion_policy.run_log.session_log import read_lines


def drifting(observation: object) -> np.ndarray:
    """A sequence that moves a millimeter per step, starting 2 mm from the measured pose."""
    sequence = np.tile(observation.states[-1], (10, 1))  # type: ignore[attr-defined]
    sequence[:, 0] += 0.002 + 0.001 * np.arange(-1, 9)
    return sequence


def test_the_seam_is_measured_on_every_run_and_logged(tmp_path: Path) -> None:
    with ServerThread(FakeEngine(drifting), settings(tmp_path)) as server, server.client() as client:
        first, second = (client.ask(observation_message(step)) for step in (0, 6))
        assert first["seam"] is None, "nothing came before"
        # Six steps later, the old chunk is 6 mm further; the arm (which did not move) starts again.
        assert second["seam"]["millimetres"] == pytest.approx(6.0)
        assert client.ask({"type": "reset"})
        assert client.ask(observation_message(0))["seam"] is None, "a new episode"
    (run,) = tmp_path.glob("run_*")
    lines = [line for line in read_lines(run)[1] if "step" in line]
    assert lines[1]["seam"]["degrees"] == pytest.approx(0.0, abs=1e-6)


def test_the_engine_gets_the_remainder_at_the_time_of_the_new_observation() -> None:
    engine = FakeEngine(drifting)
    with ServerThread(engine, settings()) as server, server.client() as client:
        for step in (0, 6, 30):
            assert client.ask(observation_message(step))["type"] == "action"
    none, six, over = engine.remainders
    assert none is None
    assert six is not None
    assert six.shape == (4, 8), "ten steps, six of them gone"
    assert over is not None
    assert len(over) == 0, "the chunk had ended long ago"


def test_actions_carry_times_on_the_client_s_clock() -> None:
    with ServerThread(FakeEngine(), settings()) as server, server.client() as client:
        reply = client.ask(observation_message(5))
    np.testing.assert_allclose(reply["timestamps"], 0.6 + np.arange(N_ACTIONS) / 10)


def test_interventions_are_reported_and_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "diffusion_policy")

    def close(observation: object) -> np.ndarray:
        sequence = np.tile(observation.states[-1], (10, 1))  # type: ignore[attr-defined]
        sequence[:, 7] = 0.0 if observation.timestamps[-1] > 0.15 else 1.0  # type: ignore[attr-defined]
        return sequence

    dwell = "guard.gripper_min_dwell=4"
    with ServerThread(FakeEngine(close), settings(tmp_path, dwell)) as server, server.client() as client:
        assert client.ask(observation_message(0))["interventions"] == {}
        reply = client.ask(observation_message(1))
    assert reply["interventions"] == {"gripper dwell": 3}, "one action was executed, three are still held open"
    assert [action[7] for action in reply["action"]] == [1, 1, 1, 0, 0, 0, 0, 0]
    (run,) = tmp_path.glob("run_*")
    assert read_lines(run)[1][1]["interventions"] == {"gripper dwell": 3}
    assert "the guard of this session: 3 x gripper dwell" in caplog.text
