"""Pictures in serving: judged as by the converter; and cameras that stopped, are covered or were exchanged."""

import base64
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from serve_factory import POSE, FakeEngine, ServerThread, jpeg, observation_message, settings
from trajectory_factory import write_trajectory

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.serve.checks.cameras import CameraMonitor, summarize
from diffusion_policy.serve.settings import CameraSettings
from diffusion_policy.serve.transport.images import decode_image
from diffusion_policy.serve.transport.protocol import Observation, ProtocolError


class Wide(FakeEngine):
    """A policy that was trained on 16:9 pictures."""

    def __init__(self, sizes: list[list[int]] | None = None) -> None:
        super().__init__()
        self.sizes = sizes

    def describe(self) -> dict[str, Any]:
        trained_on = {} if self.sizes is None else {"frame_sizes": {"front": self.sizes}}
        return super().describe() | {"cameras": ["front"], "image_size": [320, 180], "trained_on": trained_on}


def encoded(frame: np.ndarray, suffix: str = ".jpg") -> str:
    return base64.b64encode(cv2.imencode(suffix, frame)[1].tobytes()).decode()


def scene(step: int, size: tuple[int, int] = (320, 180)) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg(step, size), np.uint8), cv2.IMREAD_COLOR)


def two(frames: Any, suffix: str = ".jpg") -> dict[str, Any]:
    return {"images": [encoded(frames(step), suffix) for step in range(2)]}


BLACK = np.zeros((180, 320, 3), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 6, (180, 320, 3), dtype=np.uint8)
# name -> (the message's changes, the warning's text; None for no warning)
SHOWN: dict[str, tuple[dict[str, Any], str | None]] = {
    "a scene": (two(scene), None),
    "as PNG": (two(scene, ".png"), None),
    "black": (two(lambda step: BLACK), "the picture is black (mean level 0 of 255)"),
    "nearly black": (two(lambda step: np.roll(NOISE, step, 0)), "the picture is black (mean level "),
    "white": (two(lambda step: BLACK + np.uint8(255 - step)), "the picture is of one color (mean level 254 of 255)"),
    "one color": (two(lambda step: BLACK + np.array([9, 99, 30 + step], np.uint8)), "of one color"),
    "dark, with something in it": (two(lambda step: scene(step) // 8), None),
    "4:3": (
        two(lambda step: scene(step, (640, 480))),
        "the picture is 640x480, a shape other than the policy reads (320x180; ",
    ),
    "portrait": (two(lambda step: scene(step, (180, 320))), "the picture is 180x320"),
    "square": (two(lambda step: scene(step, (256, 256))), "the picture is 256x256"),
    "nearly 16:9": (two(lambda step: scene(step, (848, 480))), None),
    "larger": (two(lambda step: scene(step, (1280, 720))), None),
    "gray": (two(lambda step: cv2.cvtColor(scene(step), cv2.COLOR_BGR2GRAY)), "the picture is gray"),
    "the same twice": (two(lambda step: scene(0)), "frames of different times show the same picture"),
    "the same at one time": (two(lambda step: scene(0)) | {"timestamps": [0.1, 0.1]}, None),
}


@pytest.mark.parametrize(("changes", "says"), SHOWN.values(), ids=SHOWN.keys())
def test_what_a_camera_shows_is_answered_with_a_warning(changes: dict[str, Any], says: str | None) -> None:
    with ServerThread(Wide(), settings()) as server, server.client() as client:
        reply = client.ask(observation_message(0, **changes))
    assert reply["type"] == "action", reply
    about = [warning for warning in reply["warnings"] if warning.startswith("camera front: ")]
    if says is None:
        assert about == []
    else:
        assert any(says in warning for warning in about), reply["warnings"]


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, "on_black") for name in ("black", "nearly black", "white", "one color")]
    + [(name, "on_aspect") for name in ("4:3", "portrait", "square")],
)
def test_or_refused_by_setting(name: str, setting: str) -> None:
    changes, says = SHOWN[name]
    with ServerThread(Wide(), settings(None, f"cameras.{setting}=refuse")) as server, server.client() as client:
        reply = client.ask(observation_message(0, **changes))
        assert reply["code"] == "bad_image"
        assert says is not None
        assert says in reply["message"]
        assert client.ask(observation_message(1, **SHOWN["a scene"][0]))["type"] == "action"


def test_the_shape_of_the_recordings_counts_where_the_checkpoint_knows_it() -> None:
    """A policy for 320x180 whose recordings were 640x480: squeezed in training, so also when served."""
    for sizes, name, is_warned in (
        ([[640, 480]], "4:3", False),
        ([[640, 480]], "larger", True),
        ([[640, 480], [1280, 720]], "larger", False),
    ):
        with ServerThread(Wide(sizes), settings()) as server, server.client() as client:
            warnings = client.ask(observation_message(0, **SHOWN[name][0]))["warnings"]
        assert any("than in training (640x480" in warning for warning in warnings) == is_warned


def test_a_dataset_tells_the_size_of_its_recordings(tmp_path: Path, repository: Path) -> None:
    write_trajectory(tmp_path / "raw", episode_id=0, n_steps=12, size=(64, 48))
    main = runpy.run_path(str(repository / "scripts" / "convert_cogact_to_zarr.py"))["main"]
    words = ["--input", str(tmp_path / "raw"), "--output", str(tmp_path / "set.zarr"), "--resolution", "32", "18"]
    assert main(words) == 0
    meta = {
        "obs": {
            "image": {"shape": [3, 18, 32], "type": "rgb"},
            "robot_eef_pose": {"shape": [7]},
            "robot_gripper_state": {"shape": [1]},
        },
        "action": {"shape": [8]},
    }
    assert CogActImageDataset(meta, tmp_path / "set.zarr", horizon=4).frame_sizes == {"image": [(64, 48)]}


def moved(step: int, meters: float = 0.0, radians: float = 0.0) -> dict[str, Any]:
    half = step * radians / 2
    pose = [POSE[0] + step * meters, *POSE[1:3], np.cos(half), np.sin(half), 0.0, 0.0]
    before = [POSE[0] + (step - 1) * meters, *POSE[1:3], np.cos(half), np.sin(half), 0.0, 0.0]
    return {"poses": [before, pose], "timestamps": [0.6 * step - 0.1, 0.6 * step]}


FROZEN: dict[str, tuple[dict[str, float], Any, bool]] = {
    "the arm moves": ({"meters": 0.01}, lambda step: scene(0), True),
    "the arm turns": ({"radians": 0.05}, lambda step: scene(0), True),
    "the arm stands": ({}, lambda step: scene(0), False),
    "the arm trembles": ({"meters": 0.0005}, lambda step: scene(0), False),
    "black, and the arm moves": ({"meters": 0.01}, lambda step: BLACK, True),
    "the camera lives": ({"meters": 0.01}, scene, False),
}


@pytest.mark.parametrize(("travel", "frames", "is_frozen"), FROZEN.values(), ids=FROZEN.keys())
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_camera_that_stopped_is_stale_once_the_arm_has_moved(
    travel: dict[str, float], frames: Any, is_frozen: bool, suffix: str, tmp_path: Path
) -> None:
    with ServerThread(Wide(), settings(tmp_path)) as server, server.client() as client:
        replies = [
            client.ask(
                observation_message(
                    images=[encoded(frames(2 * step + i), suffix) for i in range(2)], **moved(step, **travel)
                )
            )
            for step in range(12)
        ]
    codes = [reply.get("code", reply["type"]) for reply in replies]
    if not is_frozen:
        assert codes == ["action"] * 12
        return
    assert codes[0] == "action"
    assert codes[-6:] == ["stale"] * 6
    assert "camera front: the same picture in 24 frames (6.7 s) while the arm moved" in replies[-1]["message"]
    (run,) = tmp_path.glob("run_*")
    assert all(line["input"]["images"] for line in read_lines(run)[1])


def test_a_camera_that_continues_is_served_again_and_a_reset_asks_anew() -> None:
    with ServerThread(Wide(), settings()) as server, server.client() as client:

        def ask(step: int, shown: int) -> str:
            images = [encoded(scene(shown)), encoded(scene(shown))]
            reply = client.ask(observation_message(images=images, **moved(step, 0.02)))
            return str(reply.get("code", reply["type"]))

        assert [ask(step, 0) for step in range(5)][-2:] == ["stale", "stale"]
        assert ask(5, 1) == "action"
        assert [ask(step, 1) for step in range(6, 10)][-1] == "stale"
        assert client.ask({"type": "reset"})["type"] == "reset_ack"
        assert ask(10, 1) == "action"


def test_a_stopped_camera_may_be_a_warning_and_its_limits_are_settings() -> None:
    words = ["cameras.on_frozen=warn", "cameras.frozen_frames=3", "cameras.frozen_m=0.01"]
    with ServerThread(Wide(), settings(None, *words)) as server, server.client() as client:
        same = {"images": [encoded(scene(0))] * 2}
        replies = [client.ask(observation_message(**same, **moved(step, 0.01))) for step in range(3)]
    assert [reply["type"] for reply in replies] == ["action"] * 3
    assert "it has stopped" not in str(replies[0]["warnings"])
    assert "it has stopped" in replies[1]["warnings"][-1]


def test_every_camera_is_judged_by_itself() -> None:
    """Two monitors, as for a policy with two cameras: one camera stops, the other does not."""
    monitors = [CameraMonitor(name, CameraSettings(), [(320, 180)], None, 10**6, 2) for name in ("front", "wrist")]
    stale = []
    for step in range(8):
        change = moved(step, 0.02)
        for monitor, shown in zip(monitors, (lambda i: i, lambda i: 0), strict=True):
            images = tuple(scene(shown(2 * step + i)) for i in range(2))
            observation = Observation(
                images, np.array(change["poses"]), np.ones((2, 1)), np.array(change["timestamps"])
            )
            try:
                monitor.check(observation)
            except ProtocolError as error:
                stale.append(str(error))
    assert stale
    assert all(message.startswith("camera wrist: ") for message in stale)


def test_frames_are_decoded_once_and_handed_to_the_engine() -> None:
    engine = FakeEngine()
    seen: list[Observation] = []
    engine.mischief = seen.append  # type: ignore[assignment, return-value]
    with ServerThread(engine, settings()) as server, server.client() as client:
        for step in range(3):  # one frame is shared with the request before
            assert client.ask(observation_message(step))["type"] == "action"
    known = [[frame is None for frame in observation.decoded or ()] for observation in seen]
    assert known == [[False, False], [True, False], [True, False]]
    np.testing.assert_array_equal(seen[1].decoded[1], decode_image(jpeg(2), 10**6, ""))  # type: ignore[index]


def test_pictures_are_distinguished_by_pixels_not_by_bytes() -> None:
    frame = cv2.cvtColor(scene(0), cv2.COLOR_BGR2RGB)
    assert summarize(frame).content == summarize(frame.copy()).content
    assert summarize(frame).content != summarize(frame // 2).content


# ---- the trials ----

# What trial 60 expects: "action" and a word of its warning, or "bad_image" and a word of its message.
TRIAL_60 = {
    "a_good": ("action", None), "b_png": ("action", None), "c_rgba": ("action", None),
    "d_datauri": ("bad_image", "data:"), "e_newlines": ("bad_image", "newline"),
    "f_urlsafe": ("bad_image", "URL-safe"), "g_padded": ("action", None),
    "h_damaged_zeroed": ("bad_image", "damaged"), "i_damaged_lost": ("bad_image", "damaged"), "j_stray": (None, None),
    "k_16bit": ("bad_image", "16-bit"), "l_webp": ("bad_image", "WebP"), "m_4to3": ("action", "640x480"),
    "n_portrait": ("action", "180x320"), "o_black": ("action", "black"),
    "p_same_frame_twice": ("action", "the same picture"), "q_gray": ("action", None),
    "r_pngcut": ("bad_image", "cut off"), "s_empty": ("bad_image", "0 bytes"),
}  # fmt: skip


def test_the_trial_of_images(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["60", str(tmp_path)])
    runpy.run_path(str(shared_data / "trials" / "60_serve_images.py"))
    found = {}
    with ServerThread(Wide(), settings()) as server, server.client() as client:
        for path in sorted(tmp_path.glob("*.jsonl")):
            now = time.time()
            line = path.read_text().replace('"NOW"', str(now)).replace('"BEFORE"', str(now - 0.1))
            found[path.stem] = client.ask(json.loads(line))
            client.ask({"type": "reset"})
    assert found.keys() == TRIAL_60.keys()
    for name, (kind, word) in TRIAL_60.items():
        reply = found[name]
        assert kind in (None, reply.get("code", reply["type"])), (name, reply)
        if word is not None:
            assert word in str(reply.get("warnings", reply.get("message"))), (name, reply)
    assert found["a_good"]["warnings"] == found["g_padded"]["warnings"] == []


@pytest.mark.parametrize("name", ["zeroed", "lost"])
def test_the_trial_of_one_damaged_picture_in_both_ways(
    name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["62", str(tmp_path)])
    runpy.run_path(str(shared_data / "trials" / "62_damaged_jpeg_train_vs_serve.py"))
    (damaged,) = (tmp_path / name).glob("episode_*/images/frame_0003.jpg")
    image = base64.b64encode(damaged.read_bytes()).decode()
    with ServerThread(Wide(), settings()) as server, server.client() as client:
        reply = client.ask(observation_message(images=[image, image]))
    assert reply["code"] == "bad_image"
    main = runpy.run_path(str(repository / "scripts" / "convert_cogact_to_zarr.py"))["main"]
    words = ["--input", str(tmp_path / name), "--output", str(tmp_path / "set.zarr"), "--resolution", "32", "18"]
    assert main(words) != 0
