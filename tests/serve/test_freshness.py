"""diffusion_policy.serve.checks.freshness: drift is followed, lag is not; restarted clocks; units by name."""

import csv
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serve_factory import FakeEngine, ServerThread, observation_message, settings

from diffusion_policy.serve.checks.freshness import AGREEING, EPISODE_GAP_S, Freshness
from diffusion_policy.serve.transport.protocol import ProtocolError


def seen(stamp: float) -> Any:
    return SimpleNamespace(timestamps=np.array([stamp - 0.1, stamp]))


def ages(freshness: Freshness, rows: np.ndarray) -> list[float]:
    """Returns the ages of observations (N, 2): server's seconds, client's seconds."""
    return [freshness.check(seen(client), server) for server, client in rows]


@pytest.mark.parametrize("ppm", [-500, -200, -100, -50, 0, 50, 100, 200, 500])
@pytest.mark.parametrize("every", [0.6, 8.0])
def test_a_clock_that_drifts_is_followed(ppm: float, every: float) -> None:
    server = np.arange(0, 9000 * every, every)
    delay = 0.02 + 0.03 * np.random.default_rng(0).random(len(server))
    rows = np.stack([server + delay, 1000 + server * (1 - ppm * 1e-6)], axis=1)
    assert max(ages(Freshness(0.5), rows)) < 0.05


@pytest.mark.parametrize("ppm", [-500, 0, 500])
def test_beside_a_drift_a_late_message_is_still_late(ppm: float) -> None:
    freshness = Freshness(0.5)
    server = np.arange(0, 3600, 0.6)
    ages(freshness, np.stack([server, server * (1 - ppm * 1e-6)], axis=1))
    now = 3600.0
    for lag in (0.6, 1.0, 5.0):
        with pytest.raises(ProtocolError, match=r"older than the freshest.*send reset to begin") as caught:
            freshness.check(seen(now * (1 - ppm * 1e-6)), now + lag)
        assert caught.value.code == "stale"
    assert freshness.check(seen((now + 6) * (1 - ppm * 1e-6)), now + 6) < 0.01, "what was refused moved nothing"


def test_a_lag_that_stays_is_stale_until_reset() -> None:
    freshness = Freshness(0.5)
    ages(freshness, np.stack([np.arange(0, 60, 0.6)] * 2, axis=1))
    for server in np.arange(60, 4000, 0.6):  # an hour: drift cannot be the reason
        with pytest.raises(ProtocolError, match=r"older than|observed at"):
            freshness.check(seen(server - 0.8), server)
    freshness.reset()
    assert freshness.check(seen(4000.0), 4001.0) == 0


def test_waiting_for_its_turn_counts() -> None:
    freshness = Freshness(0.5)
    assert freshness.check(seen(1.0), 1.0, now=1.4) == pytest.approx(0.4)
    with pytest.raises(ProtocolError, match=r"0\.(700|699) s older .*, 0\.600 s of it waiting for its turn"):
        freshness.check(seen(2.0), 2.1, now=2.7)
    assert freshness.check(seen(3.0), 3.0, now=3.0) == 0


def test_the_trial_of_slow_clocks(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["63", str(tmp_path)])
    runpy.run_path(str(shared_data / "trials" / "63_serve_clock.py"))
    for path in sorted(tmp_path.glob("*.csv")):
        with path.open() as file:
            rows = [(float(server), float(client)) for server, client in list(csv.reader(file))[1:]]
        assert max(ages(Freshness(0.5), np.array(rows))) < 0.01, path.name


SECONDS = np.array([1_700_000_000.0, 1_700_000_000.1])
CLOCKS = {
    "unix": (SECONDS, None),
    "since boot": (np.array([3600.0, 3600.1]), None),
    "from zero": (np.array([0.0, 0.1]), None),
    "one frame twice": (np.array([5.0, 5.0]), None),
    "since boot, float32": (np.array([3600.0, 3600.1], np.float32).astype(float), None),
    "unix, milliseconds": (SECONDS * 1e3, "milliseconds"),
    "unix, microseconds": (SECONDS * 1e6, "microseconds"),
    "unix, nanoseconds": (SECONDS * 1e9, "nanoseconds"),
    "since boot, milliseconds": (np.array([3600.0, 3600.1]) * 1e3, "milliseconds"),
    "since boot, microseconds": (np.array([3600.0, 3600.1]) * 1e6, "microseconds"),
    "since boot, nanoseconds": (np.array([3600.0, 3600.1]) * 1e9, "nanoseconds"),
    "unix, float32": (SECONDS.astype(np.float32).astype(float), "float32"),
    "unix, milliseconds, float32": ((SECONDS * 1e3).astype(np.float32).astype(float), "milliseconds"),
}


@pytest.mark.parametrize(("stamps", "named"), CLOCKS.values(), ids=CLOCKS.keys())
def test_a_time_in_another_unit_is_named(stamps: np.ndarray, named: str | None) -> None:
    with ServerThread(FakeEngine(), settings()) as server, server.client() as client:
        reply = client.ask(observation_message(0, timestamps=stamps.tolist()))
        if named is None:
            assert reply["type"] == "action", reply
            return
        assert reply["code"] == "bad_state"
        assert named in reply["message"]
        assert client.ask(observation_message(1, timestamps=SECONDS.tolist()))["type"] == "action", "nothing sticks"


def test_frames_around_a_pause_are_not_taken_for_milliseconds() -> None:
    freshness = Freshness(0.5)
    freshness.new_episode(seen(10.0), 10.0)
    paused = SimpleNamespace(timestamps=np.array([10.0, 110.0]))
    freshness.check_unit(paused, 110.0)
    with pytest.raises(ProtocolError, match="are in milliseconds; expected seconds"):
        freshness.check_unit(paused, 10.6)


def follow(freshness: Freshness, received: float, stamp: float) -> tuple[str | None, str | None]:
    """As in the session: returns what began, and why it is refused."""
    began = freshness.new_episode(seen(stamp), received)
    try:
        freshness.check(seen(stamp), received)
    except ProtocolError as error:
        return began, str(error)
    return began, None


def test_a_clock_that_begins_anew_after_a_pause_is_another_episode() -> None:
    freshness = Freshness(0.5)
    for now in np.arange(0, 6, 0.6):
        assert follow(freshness, 100 + now, now) == (None, None)
    began, refused = follow(freshness, 110.0, 0.1)  # openpi's reset() sends nothing
    assert began is not None
    assert "the client's clock restarted, 5.300 s before" in began
    assert refused is None
    assert follow(freshness, 110.6, 0.7) == (None, None)


@pytest.mark.parametrize("back", [0.7, 5.0, 3600.0])
def test_a_clock_that_is_set_back_is_followed_once_observations_agree(back: float) -> None:
    freshness = Freshness(0.5)
    for now in np.arange(0, 6, 0.2):
        assert follow(freshness, now, 1e9 + now) == (None, None)
    outcomes = [follow(freshness, 6 + 0.2 * i, 1e9 + 6 + 0.2 * i - back) for i in range(AGREEING)]
    assert all(began is None and "send reset" in (refused or "") for began, refused in outcomes[:-1])
    assert outcomes[-1][0] is not None
    assert outcomes[-1][1] is None


@pytest.mark.parametrize("stamps", [[3.0, 6.4, 3.2, 6.6, 3.4, 6.8], [3.0, 3.0, 3.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
def test_single_or_repeated_old_frames_are_not_a_new_clock(stamps: list[float]) -> None:
    freshness = Freshness(0.5)
    for now in np.arange(0, 6.2, 0.2):
        follow(freshness, now, now)
    for i, stamp in enumerate(stamps):
        began, refused = follow(freshness, 6.2 + 0.2 * i, stamp)
        assert began is None
        assert (refused is None) == (stamp > 6)


def test_after_a_long_silence_another_episode_begins_but_what_is_late_stays_late(tmp_path: Path) -> None:
    freshness = Freshness(0.5)
    follow(freshness, 0.0, 0.0)
    began, refused = follow(freshness, EPISODE_GAP_S + 5, EPISODE_GAP_S + 4)
    assert began == "a new episode begins: no observation for 15.0 s"
    assert refused is not None
    assert "1.00" in refused or "0.99" in refused
    assert follow(freshness, EPISODE_GAP_S + 6, EPISODE_GAP_S + 6)[1] is None


def test_the_session_says_that_an_episode_began_and_forgets_the_last_chunk() -> None:
    with ServerThread(FakeEngine(), settings(None, "max_age_s=0.5")) as server, server.client() as client:
        assert client.ask(observation_message(100))["type"] == "action"
        replies = [client.ask(observation_message(step)) for step in range(AGREEING)]
        assert [reply.get("code", "action") for reply in replies] == ["stale"] * (AGREEING - 1) + ["action"]
        assert replies[-1]["seam"] is None
        assert "a new episode begins: the client's clock restarted" in replies[-1]["warnings"][0]
