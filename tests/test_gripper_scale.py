"""diffusion_policy.gripper_scale: names, labels, and what is found of each scale without a declaration."""

import math

import numpy as np
import pytest
from gripper_scales import FOREIGN, GRASP, written

from diffusion_policy.gripper_scale import (
    INTERNAL,
    DeclaredScales,
    find_scales,
    labeled_scales,
    parse_scale,
    parse_scales,
)
from diffusion_policy.spec import SpecError, action_semantics


@pytest.mark.parametrize("name", ["open1", *FOREIGN])
def test_a_scale_maps_its_ends_and_back(name: str) -> None:
    scale = parse_scale(name)
    np.testing.assert_allclose(scale.to_internal([scale.closed, scale.open]), [0, 1])
    np.testing.assert_allclose(scale.from_internal(scale.to_internal(written(name))), written(name))
    assert scale.is_internal == (name == "open1")


@pytest.mark.parametrize(
    ("name", "closed", "opened"),
    [
        ("metres:0.08", 0, 0.08),
        ("millimetres_closed:80", 80, 0),
        ("meters:0.03:0.08", 0.03, 0.08),
        ("percent_open", 0, 100),
        ("byte_closed", 255, 0),
        ("range:-1:1e3", -1, 1000),
        ("radians_closed:.8", 0.8, 0),
    ],
)
def test_names(name: str, closed: float, opened: float) -> None:
    assert (parse_scale(name).closed, parse_scale(name).open) == (closed, opened)


@pytest.mark.parametrize(
    "name",
    ["", "open", "meters", "meters:", "meters:0", "meters:wide", "meters:1:1", "range:1", "byte:255",
     "meters_closed:1:2", "range:0:inf", "range:0:1e999", "percent/byte", "0.08"],
)  # fmt: skip
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(SpecError, match=r"is not known; expected one of open1, closed1, .*meters:0\.08"):
        parse_scale(name)


def test_one_name_or_two() -> None:
    assert parse_scales(None) is None
    assert parse_scales("percent") == DeclaredScales(parse_scale("percent"))
    both = parse_scales("signed_closed1/meters:0.08")
    assert both == DeclaredScales(parse_scale("signed_closed1"), parse_scale("meters:0.08"))
    assert both is not None
    assert both.name == "signed_closed1/meters:0.08"
    with pytest.raises(SpecError, match="has 3 names"):
        parse_scales("open1/open1/open1")


def test_labels_are_the_gripper_entry_of_action_semantics() -> None:
    assert labeled_scales(action_semantics(), "here") == DeclaredScales(INTERNAL)
    assert labeled_scales(None, "here") is None
    assert labeled_scales({"names": ["x"]}, "here") is None
    entry = {"open": -1, "closed": 1, "measured": {"open": 0.08, "closed": 0}}
    found = labeled_scales({"gripper": entry}, "here")
    assert found is not None
    assert found.name == "signed_closed1/range:0:0.08"
    assert found.command.label == {"open": -1.0, "closed": 1.0}


@pytest.mark.parametrize("entry", [1, {}, {"open": 1}, {"open": 1, "closed": 1}, {"open": "1", "closed": 0},
                                   {"open": math.nan, "closed": 0}, {"open": True, "closed": 0}])  # fmt: skip
def test_odd_labels_are_refused(entry: object) -> None:
    with pytest.raises(SpecError, match="here: its gripper"):
        labeled_scales({"gripper": entry}, "here")


def test_the_robots_own_scale_is_found() -> None:
    found = find_scales(GRASP, [1.0, *GRASP[:-1]])
    assert found.command.scale == INTERNAL
    assert found.measured is not None
    assert found.measured.scale == INTERNAL
    assert find_scales(GRASP).command.origin == "found"
    assert find_scales([0.98, 1.0, 0.99]).command.scale == INTERNAL


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("name", FOREIGN)
def test_no_foreign_scale_is_taken_for_it(name: str, noise: float) -> None:
    values = np.clip(np.array(GRASP) + noise * np.random.default_rng(0).standard_normal(len(GRASP)), -0.05, 1.05)
    command = written(name, values.tolist())
    for measured in (None, [command[0], command[0], *command[:-2]]):
        found = find_scales(command, measured)
        assert found.command.scale is None, found.command
        assert found.command.candidates
        flag = found.flag("")
        declared = parse_scales(flag)
        again = find_scales(command, measured, declared=declared)
        assert again.command.origin == "declared"
        if not name.startswith(("radians:-", "millimeters", "degrees", "range:0", "range:850")):
            assert again.command.scale is not None
            got = again.command.scale.to_internal(command)
            if name not in ("meters_closed:0.04", "meters:0.03:0.08"):  # a width, whose range does not show its ends
                np.testing.assert_allclose(got, values, atol=0.06)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_gripper_that_never_moves_is_not_guessed(name: str) -> None:
    """Always open, or always closed: for closed1 and signed scales the numbers alone would suggest the opposite."""
    for state in (0.0, 1.0):
        found = find_scales(written(name, [state] * 30)).command
        number = written(name, [state])[0]
        assert found.scale is None or (found.scale == INTERNAL and number == 1.0)


def test_one_column_says_what_the_other_is() -> None:
    """Binary commands above a width in meters that follows them."""
    width = np.array([0.08] * 22 + [0.03] * 15 + [0.08] * 8)
    for name in ("open1", "closed1", "signed_open1", "signed_closed1"):
        found = find_scales(written(name), width)
        assert found.command.scale == parse_scale(name)
        assert found.command.origin == "found"
        assert found.measured is not None
        assert found.measured.scale is None
        assert found.flag() == f"--gripper-scale {name}/meters:0.08"
    assert find_scales(written("closed1"), GRASP).command.scale == parse_scale("closed1")
    found = find_scales([0.001] * 30, GRASP[:30])
    assert found.command.scale == INTERNAL, "never opens, beside a measurement of 0..1"


def test_polarity_of_0_to_1_needs_a_beginning() -> None:
    starts = [0, 45, 90]
    closed1 = written("closed1") * 3
    assert find_scales(closed1, starts=starts).command.candidates[0].name == "closed1"
    assert find_scales(GRASP * 3, starts=starts).command.scale == INTERNAL
    mixed = [*GRASP, *GRASP, *written("closed1")]
    assert find_scales(mixed, starts=starts).command.scale == INTERNAL, "most episodes begin open"


@pytest.mark.parametrize("name", ["open1", *FOREIGN])
def test_what_is_declared_is_believed_unless_the_numbers_contradict(name: str) -> None:
    declared = DeclaredScales(parse_scale(name))
    found = find_scales(written(name), written(name), declared=declared)
    assert found.command.scale == declared.command
    assert found.measured is not None
    assert found.measured.scale == declared.command
    far = np.array(written(name)) + 3 * abs(declared.command.open - declared.command.closed)
    with pytest.raises(SpecError, match=r"gripper scale .*: the command is .* that looks like"):
        find_scales(far, declared=declared)
    labeled = find_scales(far, labeled=declared).command
    assert labeled.scale is None
    assert "but it is" in labeled.reason


def test_a_whole_scale_in_a_sliver_of_the_declared_one() -> None:
    for name in ("percent", "byte_closed", "range:850:0"):
        with pytest.raises(SpecError, match="that looks like open1 or closed1"):
            find_scales(GRASP, declared=parse_scales(name))


def test_a_measurement_of_another_kind_keeps_its_own_scale() -> None:
    found = find_scales(written("signed_closed1"), GRASP, declared=parse_scales("signed_closed1"))
    assert found.measured is not None
    assert found.measured.scale == INTERNAL
    assert found.measured.origin == "found"
    found = find_scales(written("signed_closed1"), written("meters:0.08"), declared=parse_scales("signed_closed1"))
    assert found.measured is not None
    assert found.measured.scale is None
    assert [name for name, _ in found.unknown] == ["measured gripper"]
    assert found.flag("gripper_scale=") == "gripper_scale=signed_closed1/meters:0.08"


def test_numbers_that_are_not_finite_are_left_out_and_shapes_are_checked() -> None:
    assert find_scales([1.0, math.nan, 0.0, 1.0]).command.scale == INTERNAL
    for constant in (-1.0, -2.0, -500.0, 0.0, 0.1, 0.5, 2.0, 300.0):
        assert all(scale.name for scale in find_scales([constant] * 5).command.candidates)
    nothing = find_scales([math.nan] * 3).command
    assert (nothing.scale, nothing.reason) == (None, "without a number")
    with pytest.raises(SpecError, match="one per step"):
        find_scales(np.zeros((3, 1)))
