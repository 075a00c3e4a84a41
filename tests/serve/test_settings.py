"""diffusion_policy.serve.settings: a misspelt key, an open door or an impossible value is an error at the start."""

import dataclasses
import runpy
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffusion_policy.serve.settings import ServeError, ServeSettings, read_settings
from diffusion_policy.spec import WorkspaceError

CONFIG = Path(__file__).resolve().parents[2] / "config" / "serve.yaml"


def test_the_shipped_config_says_every_default() -> None:
    shipped = read_settings(CONFIG, ["ckpt=a.ckpt"])
    assert shipped == read_settings(None, ["ckpt=a.ckpt"])
    keys = set(OmegaConf.load(CONFIG)) | {"ckpt"}  # type: ignore[arg-type]
    assert keys == {entry.name for entry in dataclasses.fields(ServeSettings)}


def test_every_setting_can_be_given_as_a_word() -> None:
    words = ["ckpt=data/epoch=0550-train_loss=0.017.ckpt", "guard.workspace_low=[0,0,0.1]", "engine.steps=8"]
    found = read_settings(CONFIG, words)
    assert found.ckpt == "data/epoch=0550-train_loss=0.017.ckpt"
    assert tuple(found.guard.workspace_low or ()) == (0.0, 0.0, 0.1)
    assert found.engine.steps == 8


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "ckpt: .*missing mandatory value"),
        (["ckpt=a", "guard.max_step=1"], "Key 'max_step' not in 'GuardSettings'"),
        (["ckpt=a", "port=x"], "port: .*could not be converted to Integer"),
        (["ckpt=a", "engine.precision=float8"], "engine.precision is 'float8'"),
        (["ckpt=a", "engine.warm_start=1"], "engine.warm_start is 1"),
        (["ckpt=a", "engine.fast=false", "engine.warm_start=0.5"], "engine.fast is off"),
        (["ckpt=a", "deadline_s=0"], "deadline_s is 0"),
        (["ckpt=a", "engine.device=foo"], "engine.device is 'foo'; expected cpu, cuda"),
        (["ckpt=a", "engine.threads=0"], "engine.threads is 0; expected 1 or more"),
        (["ckpt=a", "engine.cached_frames=-1"], "engine.cached_frames is -1"),
        (["ckpt=a", "port=70000"], "port is 70000; expected 0 "),
        (["ckpt=a", "log.queue=0"], "log.queue is 0"),
        (["ckpt=a", "traffic.connections=0"], "traffic.connections is 0"),
        (["ckpt=a", "traffic.idle_s=0"], "traffic.idle_s is 0"),
        (["ckpt=a", "guard.gripper_min_dwell=-1"], "gripper_min_dwell is -1"),
        (["ckpt=a", "guard.on_step=ignore"], "motion guard: on_step is 'ignore'"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], match: str) -> None:
    with pytest.raises(WorkspaceError, match=match):
        read_settings(CONFIG, words)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ServeError, match="No such file"):
        read_settings("absent.yaml", ["ckpt=a"])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_loopback_needs_no_token(host: str) -> None:
    assert read_settings(None, ["ckpt=a", f"host='{host}'"]).token() is None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "robot.local", ""])
def test_another_address_needs_a_token_or_permission(host: str, tmp_path: Path) -> None:
    words = ["ckpt=a", f"host='{host}'"]
    with pytest.raises(ServeError, match="use an SSH tunnel, or set token_file"):
        read_settings(None, words).token()
    assert read_settings(None, [*words, "allow_unauthenticated=true"]).token() is None
    (tmp_path / "token").write_text("secret\n")
    assert read_settings(None, [*words, f"token_file={tmp_path / 'token'}"]).token() == "secret"


def test_a_token_file_without_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ServeError, match="is empty"):
        read_settings(None, ["ckpt=a", f"token_file={tmp_path / 'token'}"]).token()
    with pytest.raises(ServeError, match="cannot be read"):
        read_settings(None, ["ckpt=a", f"token_file={tmp_path / 'absent'}"]).token()


def test_the_door_refuses_before_anything_is_loaded(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(repository / "scripts" / "serve.py"))["main"]
    assert main(["ckpt=absent.ckpt", "host=0.0.0.0"]) == 2
    assert "everybody on that network could move the arm" in capsys.readouterr().err
    assert main(["ckpt=absent.ckpt"]) == 2
    assert "there is no such checkpoint file" in capsys.readouterr().err
