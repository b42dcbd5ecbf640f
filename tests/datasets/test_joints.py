import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from depi.datasets.recording.joints import Detection, check_native, from_degrees, to_degrees, to_space
from depi.errors import UserError

DEGREES = arrays(np.float64, (4, 6), elements=st.floats(-180, 180))
AFFINE = ("degrees_v1", "degrees", "normalized", "radians", "native")


@pytest.mark.parametrize("convention", AFFINE)
@given(values=DEGREES)
def test_conversions_are_inverses(convention, values):
    there = from_degrees(values, convention)
    np.testing.assert_allclose(to_degrees(there, convention), values, atol=1e-10)
    np.testing.assert_allclose(from_degrees(to_degrees(values, convention), convention), values, atol=1e-10)
    assert there.shape == values.shape


def test_conversions_by_hand():
    old = np.array([[10, 90, 90, -5, 30, 40], [0, 190, 0, 0, 0, 0]], np.float32)
    new = np.array([[10, 0, 0, -5, 30, 40], [0, -100, -90, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(to_degrees(old, "degrees_v1"), new)
    np.testing.assert_array_equal(from_degrees(new, "degrees_v1"), old)
    full = np.array([100, -100, 100, -100, 100, 100], np.float32)
    expected = [110.8, -103.5, 97.4, -101.2, 170.2, 100]
    np.testing.assert_allclose(to_degrees(full, "normalized"), expected, rtol=1e-6)
    radians = np.array([np.pi / 2, 0, -np.pi / 4, 0, 0, -0.174533], np.float32)
    np.testing.assert_allclose(to_degrees(radians, "radians"), [90, 0, -45, 0, 0, 0], atol=1e-4)
    assert to_degrees(np.array([0, 0, 0, 0, 0, 1.745329]), "radians")[5] == pytest.approx(100)


def test_dtype_stays_and_what_has_no_conversion_is_refused():
    assert to_degrees(np.ones((2, 6), np.float32), "radians").dtype == np.float32
    assert to_degrees(np.zeros((2, 14)), "native").shape == (2, 14)
    with pytest.raises(ValueError, match="unknown"):
        to_degrees(np.ones((2, 6)), "unknown")
    with pytest.raises(ValueError, match="6 joints, not 7"):
        to_degrees(np.zeros((2, 7)), "normalized")


def test_the_space_of_training():
    exact = Detection("normalized", "", (120.0, None, None, None, None))
    values = np.full((1, 6), 50, np.float32)
    degrees = [60, 51.75, 48.7, 50.6, 85.1, 50]
    np.testing.assert_allclose(to_space(values, exact, "degrees"), [degrees], rtol=1e-6)
    shares = [60 / 1.108, 50, 50, 50, 50, 50]
    np.testing.assert_allclose(to_space(values, exact, "normalized"), [shares], rtol=1e-6)
    old = to_degrees(values, "degrees_v1")
    np.testing.assert_allclose(
        to_degrees(to_space(values, Detection("degrees_v1", ""), "normalized"), "normalized"), old, rtol=1e-5
    )
    np.testing.assert_array_equal(to_space(values, exact, "native"), values)
    pusht = np.zeros((3, 2), np.float32)
    assert to_space(pusht, Detection("native", ""), "normalized") is pusht
    with pytest.raises(ValueError, match="'radians' of the training data"):
        to_space(values, exact, "radians")


def test_recorded_numbers_of_different_conventions_are_not_pooled():
    same = Detection("normalized", "a")
    check_native({"a/b": same, "c/d": Detection("normalized", "b")})
    with pytest.raises(UserError, match=r"degrees \(x/y\), normalized \(a/b\): choose"):
        check_native({"a/b": same, "x/y": Detection("degrees", "")})
