"""The first signal ends a run properly and is answered; the second one is not held back."""

import os
import signal

import pytest

from diffusion_policy.workspace.interruption import StopRequest


def test_the_first_signal_is_remembered_and_answered_and_the_second_ends_at_once(capfd):
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        assert "SIGINT: the update or validation under way is finished" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_only_the_process_that_talks_to_the_user_answers(capfd):
    with StopRequest(says=False):
        signal.raise_signal(signal.SIGTERM)
    with StopRequest():
        child = os.fork()
        if child == 0:  # as a loader worker
            signal.raise_signal(signal.SIGINT)
            os._exit(0)
        os.waitpid(child, 0)
    assert capfd.readouterr().err == ""
