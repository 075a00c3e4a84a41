"""The picture shows what matters: where the block is, whether it is lifted, whether the fingers are open."""

import numpy as np

from diffusion_policy.sim.camera import Camera
from diffusion_policy.sim.tabletop import HOME, Tabletop, downward_pose, draw_scene


def scene_and_camera(seed: int = 0) -> tuple[Tabletop, Camera]:
    scene = draw_scene(np.random.default_rng(seed))
    return Tabletop(scene), Camera(scene, (320, 180))


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.abs(before.astype(int) - after.astype(int)).max(axis=-1) > 12


def test_frames_have_the_size_asked_for_and_repeat() -> None:
    tabletop, camera = scene_and_camera()
    frame = camera.render(tabletop)
    assert frame.shape == (180, 320, 3)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, camera.render(tabletop))


def test_scenes_look_different() -> None:
    frames = [camera.render(tabletop) for tabletop, camera in map(scene_and_camera, range(3))]
    assert difference(frames[0], frames[1]).mean() > 0.01
    assert difference(frames[1], frames[2]).mean() > 0.01


def test_closed_fingers_are_visible() -> None:
    tabletop, camera = scene_and_camera()
    before = camera.render(tabletop)
    for _ in range(8):
        tabletop.step(downward_pose(HOME), 0)
    changed = difference(before, camera.render(tabletop))
    rows, columns = np.nonzero(changed)
    assert changed.sum() > 50
    assert np.ptp(columns) < 120, "nothing but the fingers and their shadow moves"
    assert rows.max() < 150


def test_the_block_is_where_the_scene_says() -> None:
    tabletop, camera = scene_and_camera()
    before = camera.render(tabletop)
    tabletop.blocks[0].position[1] += 0.06  # toward the picture's right
    rows, columns = np.nonzero(difference(before, camera.render(tabletop)))
    assert len(rows) > 100
    assert columns.mean() > 160, "the block's side of the table is the right half"
