"""MineDojo's spaces over all actions that VPT can take, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffusion_policy.minecraft.actions import (
    BUTTONS,
    GROUPS,
    N_BUTTONS,
    N_CAMERA,
    Factored,
    MinecraftError,
    to_environment,
    to_factored,
)
from diffusion_policy.minecraft.minedojo import (
    CameraRemainder,
    MineDojoSpace,
    from_simulator,
    losses,
    to_simulator,
)

SPACES = [
    MineDojoSpace(),
    MineDojoSpace(hotbar="slot"),
    MineDojoSpace(0.1),
    MineDojoSpace(5, hotbar="slot"),
    MineDojoSpace(crafts=4),
]
spaces = pytest.mark.parametrize(
    "space", SPACES, ids=lambda space: f"{space.camera_interval:g}-{space.hotbar}-{space.crafts}"
)


def _pressed(action) -> set[str]:
    return {name for name in BUTTONS if action[name]}


def _reachable(seed: int):
    """Every joint button action that differs from others in more than the camera, each with some turn."""
    numbers = np.arange(0, N_BUTTONS, len(GROUPS["camera"]))
    turns = np.random.default_rng(seed).integers(0, N_CAMERA, len(numbers))
    # The next number has the same buttons with a moving camera; the inventory's has none.
    factored = to_factored({"buttons": np.minimum(numbers + 1, N_BUTTONS - 1), "camera": turns})
    yield from (to_environment(Factored(*row)) for row in zip(*factored, strict=True))


def test_the_default_is_minedojos_space():
    assert MineDojoSpace().sizes == (3, 3, 4, 25, 25, 8, 244, 36)
    np.testing.assert_array_equal(MineDojoSpace().no_op, [0, 0, 0, 12, 12, 0, 0, 0])
    assert MineDojoSpace(0.1).sizes[3:5] == (3601, 3601)


def test_a_guides_variant_has_four_crafts():
    space = MineDojoSpace(crafts=4)
    assert space.sizes == (3, 3, 4, 25, 25, 8, 4, 36)
    assert space.to_vpt([0, 0, 0, 12, 12, 4, 3, 0]).lost == ("craft 3",)
    with pytest.raises(MinecraftError, match="slot 6 is 4"):
        space.to_vpt([0, 0, 0, 12, 12, 4, 4, 0])
    for crafts in (0, 245):
        with pytest.raises(MinecraftError, match=f"crafts is {crafts}"):
            MineDojoSpace(crafts=crafts)


@spaces
def test_nothing_maps_to_no_op_and_back(space: MineDojoSpace):
    assert space.from_vpt({}).lost == ()
    np.testing.assert_array_equal(space.from_vpt({}).action, space.no_op)
    back = space.to_vpt(space.no_op)
    assert (_pressed(back.action), back.lost, list(back.action["camera"])) == (set(), (), [0, 0])


@spaces
def test_what_comes_back_is_what_went_less_the_reported_losses(space: MineDojoSpace):
    for action in _reachable(0):
        slots, lost = space.from_vpt(action)
        back, more = space.to_vpt(slots)
        assert more == ()
        assert _pressed(back) == _pressed(action) - set(lost), (action, slots)
        left = action["camera"] - back["camera"]
        assert [abs(value) > 1e-9 for value in left] == [
            any(name.startswith(axis) for name in lost) for axis in ("pitch", "yaw")
        ]
        np.testing.assert_array_equal(space.from_vpt(back).action, slots)


@spaces
def test_the_table_of_losses_counts_what_single_actions_lose(space: MineDojoSpace):
    table = {row.reason: row.actions for row in losses(space)}
    # Of 2 x 3 choices of jump and sneak or sprint, one is jump with sneak and one jump with sprint.
    assert table["sneak"] == table["sprint"] == 8640 // 6
    assert table["inventory"] == 1
    # use, drop and attack are one choice each: use is lost with attack (1/4), drop with either (3/8)
    assert (table["use"], table["drop"]) == (8640 // 4, 8640 * 3 // 8)
    assert ("a hotbar button beside attack, use or drop" in table) == (space.hotbar == "equip")
    assert table.get("a turn between two bins of the camera", 0) == sum(
        bool(space.from_vpt(to_environment(to_factored({"buttons": 1, "camera": index}))).lost) for index in range(121)
    )


def test_at_fifteen_degrees_only_the_largest_turns_show_and_none_turns_one_way_only():
    space = MineDojoSpace()
    for degrees in np.linspace(-10, 10, 81):
        turned = space.to_vpt(space.from_vpt({"camera": (degrees, -degrees)}).action).action["camera"]
        assert turned[0] == -turned[1] == (0 if abs(degrees) < 7.5 else np.sign(degrees) * 15)


@spaces
def test_a_remainder_keeps_the_sum_of_turns_within_half_a_bin(space: MineDojoSpace):
    rng, remainder, asked, turned = np.random.default_rng(1), CameraRemainder(), np.zeros(2), np.zeros(2)
    for _ in range(500):
        camera = rng.normal(0, 3, 2)
        slots, lost = space.from_vpt({"camera": camera}, remainder)
        asked, turned = asked + camera, turned + space.to_vpt(slots).action["camera"]
        assert lost == ()
        assert np.abs(asked - turned).max() <= space.camera_interval / 2 + 1e-9
    remainder.reset()
    assert not remainder.degrees.any()


@pytest.mark.parametrize("interval", [7, 0, -15, 360, 16, float("nan")])
def test_an_interval_without_a_bin_for_no_turn_is_refused(interval: float):
    with pytest.raises(MinecraftError, match="camera_interval"):
        MineDojoSpace(interval)


@pytest.mark.parametrize("slots", [[0] * 7, [0.5] * 8, [3, *[0] * 7], [-1, *[0] * 7], [0, 0, 0, 0, 0, 0, 244, 0]])
def test_numbers_out_of_the_space_are_refused(slots):
    with pytest.raises(MinecraftError, match=r"expected"):
        MineDojoSpace().to_vpt(slots)


@pytest.mark.parametrize(
    ("slots", "lost"),
    [
        ([0, 0, 0, 12, 12, 4, 7, 0], ("craft 7",)),
        ([0, 0, 0, 12, 12, 6, 0, 3], ("place 3",)),
        ([0, 0, 0, 12, 12, 7, 0, 35], ("destroy 35",)),
        ([0, 0, 0, 12, 12, 5, 0, 9], ("equip 9",)),
    ],
)
def test_what_vpt_has_no_button_for_is_reported(slots, lost):
    assert MineDojoSpace().to_vpt(slots).lost == lost


def test_the_simulators_dictionary_loses_the_inventory_alone():
    for action in _reachable(2):
        there, lost = to_simulator(action)
        assert lost == (("inventory",) if action["inventory"] else ())
        back, more = from_simulator({**there, "pickItem": 0, "swap_slot": 0})
        assert more == ()
        assert _pressed(back) == _pressed(action) - {"inventory"}
        np.testing.assert_array_equal(back["camera"], action["camera"])
    assert from_simulator({"pickItem": 1}).lost == ("pickItem",)


def test_the_page_says_what_the_code_does(capsys: pytest.CaptureFixture[str]):
    page = (Path(__file__).resolve().parents[2] / "docs" / "vpt.md").read_text()
    (block,) = [part.split("```")[0] for part in page.split("```python\n")[1:] if "MineDojoSpace" in part]
    exec(compile(block, "docs/vpt.md", "exec"), {})  # noqa: S102
    (shown,) = [line.partition("# ")[2] for line in block.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.strip() == shown
    counts = {f"{row.actions:,}" for row in losses(MineDojoSpace()) if row.total == N_BUTTONS}
    assert all(f"| {count}" in page or f"; {count}" in page for count in counts)
