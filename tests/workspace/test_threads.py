"""Compute threads of a run: chosen when it begins and kept when it is resumed, so that sums are grouped as before."""

import pytest
import torch

from diffusion_policy.cpu import CpuTimes, Threads
from diffusion_policy.workspace import threads
from diffusion_policy.workspace.threads import set_compute_threads

NOW = CpuTimes(0.0, 0.0, {})


@pytest.fixture
def settle(monkeypatch):
    """Simulates a machine with four cores, of which `free` are idle."""
    before = torch.get_num_threads()
    for name in threads.EXPLICIT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)

    def settle(free, asked=None, kept=None):
        chosen = Threads(asked or free, f"4 cores, of which other processes use {4 - free}.0", 4.0 - free)
        monkeypatch.setattr(threads, "choose_threads", lambda *_: chosen)
        found = set_compute_threads(asked, kept, NOW)
        assert torch.get_num_threads() == found
        return found

    yield settle
    torch.set_num_threads(before)


def test_a_run_begins_with_what_is_left(settle, caplog):
    caplog.set_level("INFO")
    assert settle(4) == 4
    assert caplog.text == ""
    assert settle(1) == 1
    assert "1 compute thread (4 cores, of which other processes use 3.0); training.threads=N sets it" in caplog.text


def test_a_resumed_run_keeps_its_number_and_says_where_another_would_be_faster(settle, caplog):
    assert settle(4, kept=2) == 2
    assert caplog.text == ""
    assert settle(1, kept=2) == 2
    assert "this run started with 2 compute threads and keeps them" in caplog.text
    assert "training.threads=1 may be faster" in caplog.text
    assert settle(2, kept=16) == 4


def test_what_is_asked_for_is_done(settle):
    assert settle(1, asked=3, kept=2) == 3


def test_processes_of_one_machine_share_its_cores(settle, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert settle(4) == 2
    assert settle(1) == 1
