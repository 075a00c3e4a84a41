"""Hostile files of other programs, through their readers: inspected or refused, never run, and never slow."""

from __future__ import annotations

import resource
import shlex
import time
from pathlib import Path

import pytest
import torch
from adapt_factory import policy_cfg
from hostile.foreign import BORNE, REFUSED
from rich.console import Console

from diffusion_policy.adapt.files import plan_file, rules_of
from diffusion_policy.adapt.inspection import inspect_file
from diffusion_policy.adapt.target import Target, target_from_config
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.families import FAMILIES

MOST_MEMORY = 300 * 2**20
MOST_SECONDS = 10.0


@pytest.fixture(scope="module")
def target() -> Target:
    return target_from_config(policy_cfg(["gripper"]), "gripper")


def shown(path: Path) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 (of the console)
    console.print(inspect_file(path).table())
    console.file.close()
    return console.export_text()


def planned(path: Path, target: Target) -> None:
    plan_file(path, target, rules_of(["image_encoder"]))


@pytest.mark.parametrize("name", [*REFUSED, *BORNE])
def test_nothing_runs_and_little_is_spent(name: str, target: Target, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    write = REFUSED[name][0] if name in REFUSED else BORNE[name]
    path = write(tmp_path, f"touch {shlex.quote(str(canary))}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.process_time()
    if name in REFUSED:
        with pytest.raises(WorkspaceError, match=REFUSED[name][1]) as caught:
            inspect_file(path)
        assert "\n" not in str(caught.value)
    else:
        text = shown(path)
        assert "\x1b" not in text
        assert len(text) < 2**22
    with pytest.raises(WorkspaceError):
        planned(path, target)
    assert not canary.exists()
    assert time.process_time() - started < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory < MOST_MEMORY


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("shape", [(), (3,), (0, 0), (2, 3, 4, 5, 6)], ids=str)
def test_the_mark_of_a_family_alone_is_not_a_crash(family, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save({family.marker: torch.ones(shape)}, tmp_path / "alone.pth")
    assert family.title in inspect_file(tmp_path / "alone.pth").family
