"""diffusion_policy.geometry: rotations, with q and -q treated as equal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from diffusion_policy import geometry
from diffusion_policy.spec import SpecError


def test_sign_alignment_removes_flips_and_keeps_rotations() -> None:
    rng = np.random.default_rng(0)
    smooth = Rotation.from_rotvec(np.linspace(0, 2.5, 40)[:, None] * np.array([[0.6, 0.8, 0.0]])).as_quat()
    flipped = smooth * rng.choice([-1, 1], size=(40, 1))
    aligned = geometry.align_quaternion_signs(flipped)
    assert (np.einsum("ij,ij->i", aligned[1:], aligned[:-1]) > 0).all()
    np.testing.assert_allclose(geometry.geodesic_distance(aligned, smooth), 0, atol=1e-7)
    np.testing.assert_allclose(geometry.align_quaternion_signs(flipped, reference=smooth[0]), smooth)
    assert geometry.align_quaternion_signs(np.empty((0, 4))).shape == (0, 4)


@given(st.floats(0, np.pi), st.sampled_from([-1.0, 1.0]), st.floats(0.995, 1.005))
def test_geodesic_distance_is_the_angle_whatever_sign_and_norm(angle: float, sign: float, norm: float) -> None:
    start = Rotation.from_euler("xyz", [0.3, -0.2, 1.0])
    end = start * Rotation.from_rotvec([0, angle, 0])
    assert geometry.geodesic_distance(start.as_quat(), sign * norm * end.as_quat()) == pytest.approx(angle, abs=1e-6)


def test_quaternions_off_the_unit_sphere_are_refused() -> None:
    geometry.check_unit_quaternions([[0, 0, 0, 1.005], [0, 0, 0, -0.995]], "log")
    with pytest.raises(SpecError, match=r"log: quaternion 1 has norm 0\.5000; .*1 of 2 are off"):
        geometry.check_unit_quaternions([[0, 0, 0, 1], [0, 0.5, 0, 0]], "log")
    with pytest.raises(SpecError, match="norm nan"):
        geometry.check_unit_quaternions([[np.nan, 0, 0, 1]], "log")
