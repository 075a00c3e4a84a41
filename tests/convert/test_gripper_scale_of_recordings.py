"""Recordings whose gripper has another scale: refused with the flag that settles it, and converted with it."""

from pathlib import Path

import numpy as np
import pytest
from gripper_scales import FOREIGN
from trajectory_factory import recorded_arrays, write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.convert.settings import ConversionError
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose.inspection import inspect_recordings
from diffusion_policy.gripper_scale import parse_scale, parse_scales
from diffusion_policy.spec import SpecError, action_semantics
from diffusion_policy.trajectory import TrajectoryError, open_trajectory


def recorded_in(directory: Path, command: str, measured: str | None = None, number: int = 0) -> Path:
    """An episode whose gripper is recorded in other scales; integers where the scale has them."""
    arrays = {}
    for key, name in (("action_gripper", command), ("robot_gripper", measured or command)):
        values = parse_scale(name).from_internal(recorded_arrays(20, number)[key])
        whole = np.round(values).astype(np.int64)
        arrays[key] = whole if np.allclose(whole, values) else values.astype(np.float32)
    return write_trajectory(directory, number, size=(32, 18), arrays=arrays)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_declared_scale_is_converted(tmp_path: Path, name: str) -> None:
    folder = recorded_in(tmp_path, name)
    if name != "closed1":  # swapped 0 and 1 are accepted; the checks ask, see `polarity`
        with pytest.raises(TrajectoryError, match="--gripper-scale"):
            open_trajectory(folder)
    opened = open_trajectory(folder, parse_scales(name))
    np.testing.assert_allclose(opened.action_gripper, recorded_arrays(20, 0)["action_gripper"], atol=1e-6)
    np.testing.assert_allclose(opened.gripper, recorded_arrays(20, 0)["robot_gripper"], atol=1e-6)


def test_the_converter_takes_it_and_remembers(tmp_path: Path) -> None:
    scale = "signed_closed1/meters:0.08"
    for number in range(2):
        recorded_in(tmp_path / "raw", "signed_closed1", "meters:0.08", number)
    asked = {"source": tmp_path / "raw", "output": tmp_path / "out.zarr", "resolution": (32, 18)}
    with pytest.raises(TrajectoryError, match="--gripper-scale"):
        convert(ConversionSettings(**asked))
    report = convert(ConversionSettings(**asked, gripper_scale=scale))
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    assert set(np.asarray(buffer["action"][:, 7])) == {0.0, 1.0}
    assert set(np.asarray(buffer["robot_gripper_state"][:, 0])) == {0.0, 1.0}
    assert buffer.label == action_semantics()
    assert report.settings["gripper_scale"] == scale
    recorded_in(tmp_path / "raw", "signed_closed1", "meters:0.08", 2)
    with pytest.raises(ConversionError, match=r"made with other settings: .*gripper_scale"):
        convert(ConversionSettings(**asked, append=True))
    with pytest.raises(SpecError, match="is not known"):
        ConversionSettings(**asked, gripper_scale="per cent")


def test_the_checks_of_recordings_take_it(tmp_path: Path) -> None:
    recorded_in(tmp_path, "percent")
    with pytest.raises(TrajectoryError, match="--gripper-scale percent"):
        inspect_recordings(tmp_path)
    found = inspect_recordings(tmp_path, gripper_scale="percent")
    assert [len(episode.events) for episode in found.details.episodes] == [2]


def test_what_contradicts_the_flag_is_refused(tmp_path: Path) -> None:
    folder = recorded_in(tmp_path, "percent")
    with pytest.raises(
        TrajectoryError, match=r"gripper scale signed_open1 .*: the command is 0 to 100; that looks like"
    ):
        open_trajectory(folder, parse_scales("signed_open1"))
    with pytest.raises(TrajectoryError, match="robot_gripper has an unknown scale"):
        open_trajectory(recorded_in(tmp_path, "signed_closed1", "meters:0.08", 1), parse_scales("signed_closed1"))
