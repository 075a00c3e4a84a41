"""Tables, the picture and videos of a result."""

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from printed import printed

from diffusion_policy.closed_loop.evaluation import ClosedLoop
from diffusion_policy.closed_loop.pictures import draw_outcomes
from diffusion_policy.closed_loop.tables import comparison_table, result_table
from diffusion_policy.closed_loop.videos import Video, video_name
from diffusion_policy.env_runner.results import ResultError, SceneResult, compare

ABOUT: dict[str, Any] = {
    "simulator": {"env": {"_target_": "a.b.TabletopEnv"}},
    "task": "pick_and_place",
    "referee": "physics",
    "n_action_steps": 6,
    "scheduler": "ddim",
    "steps": 8,
    "weights": "ema_model",
    "through_server": True,
    "latency_injected_ms": 200.0,
    "seed": 100,
    "notes": ["a note"],
}


def results(n: int = 30) -> list[SceneResult]:
    rng = np.random.default_rng(0)
    reasons = ["closed beside", "dropped", "timeout"]
    return [
        SceneResult(
            scene, 100 + scene, scene % 3 > 0, 60, None if scene % 3 else reasons[scene % 9 // 3], scene % 2 == 0,
            (float(rng.uniform(0.4, 0.54)), float(rng.uniform(0.07, 0.21))), 10, {"late": 1}, {"step angle": 2}, (9.5,),
        )
        for scene in range(n)
    ]  # fmt: skip


def test_the_table_says_all_of_it() -> None:
    text = " ".join(printed(result_table(ClosedLoop(ABOUT, 40, results()))).split())
    for part in (
        "success 20 of 30 (49-81 %)",
        "grasped 15 of 30",
        "closed beside 4, dropped 3, timeout 3",
        "TabletopEnv, pick_and_place; referee physics; 6 steps of a chunk executed; ddim in 8 steps, ema_model",
        "through the server and its guard; latency of 200 ms injected; seeds 100 to 139",
        "late 30",
        "step angle 60",
        "10 ms by median",
        "a note",
        "30 of 40 scenes have ended",
    ):
        assert part in text, text


def test_the_comparison_names_both() -> None:
    better = [SceneResult(result.scene, result.seed, steps=60, success=True) for result in results()]
    text = " ".join(printed(comparison_table(compare(results(), better), "old.ckpt", "new.ckpt")).split())
    assert "new.ckpt does +33 points" in text
    assert "p = 0.002" in text


def test_the_picture_shows_outcomes_over_positions(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "outcomes.png"
    draw_outcomes(results(), "a title", path)
    picture = cv2.imread(str(path))
    assert picture.shape[0] > 400
    assert picture.std() > 10
    draw_outcomes(results(1), "one scene", path)
    with pytest.raises(ResultError, match="no scene has a position"):
        draw_outcomes([SceneResult(0, 0, steps=5, success=True)], "nothing", tmp_path / "none.png")


@pytest.mark.parametrize("size", [(36, 64), (45, 81)])
def test_a_video_holds_the_frames_and_its_outcome(tmp_path: Path, size: tuple[int, int]) -> None:
    video = Video(tmp_path, 3, 10.0)
    for step in range(12):
        video.add(np.full((*size, 3), 20 * step, dtype=np.uint8), f"step {step}")
    video.finish(SceneResult(3, 100, steps=12, success=False, reason="closed beside"))
    (path,) = tmp_path.iterdir()
    assert path.name == "scene_0003_failed_closed_beside.mp4"
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 10
    assert len(frames) == 12 + 10, "the last frame stays for a second"
    assert frames[0].shape[1] == size[1] - size[1] % 2
    assert frames[11][:30].mean() > frames[2][:30].mean() + 100


def test_a_broken_off_video_is_removed(tmp_path: Path) -> None:
    video = Video(tmp_path, 0, 10.0)
    video.add(np.zeros((36, 64, 3), dtype=np.uint8), "")
    video.finish(None)
    Video(tmp_path, 1, 10.0).finish(None)
    assert not list(tmp_path.iterdir())


def test_names_of_videos() -> None:
    assert video_name(SceneResult(7, 0, steps=5, success=True)) == "scene_0007_success.mp4"
    assert (
        video_name(SceneResult(7, 0, steps=5, success=False, reason="Fell / off!")) == "scene_0007_failed_fell_off.mp4"
    )
