"""diffusion_policy.serve.settings: a misspelt key, an open server or an impossible value is an error at the start."""

import dataclasses
import math
import os
import re
import runpy
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.settings import ServeError, ServeSettings, read_settings, setting_names

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


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("guard.max_step=1", "guard.max_step_m"),
        ("steps=8", "engine.steps"),
        ("max_step_m=0.02", "guard.max_step_m"),
        ("engine.step=8", "engine.steps"),
        ("engin.steps=8", "engine.steps"),
        ("prot=9", "port"),
        ("checkpoint=a.ckpt", "ckpt"),
        ("websocketport=8008", "websocket_port"),
        ("Guard.Max_Step_M=1", "guard.max_step_m"),
        ("log.dir=null", "log.directory"),
        ("entirely.else=1", "settings are ckpt, host, port"),
    ],
)
def test_the_nearest_of_a_misspelt_key_is_named(word: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=f"{re.escape(repr(word))}: .*{nearest}") as caught:
        read_settings(CONFIG, ["ckpt=a", word])
    assert "\n" not in str(caught.value)
    group, _, key = word.partition("=")[0].rpartition(".")
    path = tmp_path / "own.yaml"
    path.write_text(f"{group}:\n  {key}: 1\n" if group else f"{key}: 1\n")
    with pytest.raises(ServeError, match=f"{re.escape(str(path))}: .*{nearest}"):
        read_settings(path, ["ckpt=a"])


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("latest.ckpt", "did you mean ckpt=latest.ckpt"),
        ("my run/latest.ckpt", "did you mean 'ckpt=my run/latest.ckpt'"),
        ("config/serve.yaml", "did you mean --config config/serve.yaml"),
        ("8007", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("engine=5", "a group of settings is expected"),
        ("port=${port}", "Recursive interpolation"),
        ("port=${nothing}", "'nothing' not found"),
    ],
)
def test_a_word_that_sets_nothing_is_refused(word: str, hint: str) -> None:
    with pytest.raises(ServeError, match=re.escape(hint)) as caught:
        read_settings(None, ["ckpt=a", word])
    assert "\n" not in str(caught.value)


FILES = {
    "empty": ("", None),
    "broken": ("a: [", "own.yaml"),
    "two mappings": ("a: 1\n---\nb: 2\n", "own.yaml"),
    "a list": ("- 1\n", "holds a list"),
    "text": ("hello\n", "own.yaml"),
    "one key twice": ("port: 1\nport: 2\n", "own.yaml"),
    "a number as a key": ("1: 2\n", "own.yaml"),
    "a group as a number": ("engine: 5\n", "group of settings"),
    "a tag that runs code": ("port: !!python/object/apply:os.getpid []\n", "own.yaml"),
    "not UTF-8": (b"\xff\xfe\x00", "own.yaml"),
}


@pytest.mark.parametrize(("text", "match"), FILES.values(), ids=FILES.keys())
def test_an_invalid_file_is_one_error(text: str | bytes, match: str | None, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if match is None:
        assert read_settings(path, ["ckpt=a"]) == read_settings(None, ["ckpt=a"])
        return
    with pytest.raises(ServeError, match=match) as caught:
        read_settings(path, ["ckpt=a"])
    assert "\n" not in str(caught.value)


def is_sane(name: str, value: object) -> bool:
    """Finite, and not negative except for thresholds on policies' numbers."""
    return not isinstance(value, float) or (math.isfinite(value) and (value >= 0 or "gripper" in name))


WRONG = {float: ["nan", "-1", "1e400", "text"], int: ["-1", "text"], bool: ["text"], str: ["[1]"], type(None): ["[a]"]}


@pytest.mark.parametrize("name", setting_names())
def test_a_value_is_taken_or_refused_in_one_line(name: str) -> None:
    group, _, key = name.rpartition(".")

    def value_of(found: object) -> object:
        return getattr(getattr(found, group) if group else found, key)

    for value in WRONG[type(value_of(read_settings(None, ["ckpt=a"])))]:
        taken, refused = None, ""
        try:
            taken = value_of(read_settings(None, ["ckpt=a", f"{name}={value}"]))
        except WorkspaceError as error:
            refused = str(error)
        if refused:
            assert key in refused
            assert "\n" not in refused
        else:
            assert is_sane(name, taken), f"{name}={value} is taken as {taken}"


def test_a_missing_checkpoint_is_named_with_a_command_that_serves_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, run in enumerate(("b/old", "new", "c/older")):
        path = tmp_path / "data" / "outputs" / run / "checkpoints" / "latest.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - abs(age - 1), 1000 - abs(age - 1)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServeError, match=r"ckpt: missing mandatory value; .* ckpt=data/outputs/new/checkpoints/latest"):
        read_settings(None, [])


def test_a_missing_file() -> None:
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


def test_the_command_refuses_before_anything_is_loaded(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(repository / "scripts" / "serve.py"))["main"]
    assert main(["ckpt=absent.ckpt", "host=0.0.0.0"]) == 2
    assert "anyone on that network could move the arm" in capsys.readouterr().err
    assert main(["ckpt=absent.ckpt", "port=0", "log.directory=null"]) == 2
    assert "there is no such checkpoint file" in capsys.readouterr().err
