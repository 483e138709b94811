"""Guidance over the noise level: what a curve says, and what is told about a bad one."""

import math

import numpy as np
import pytest

from skyreels_model.plan.guidance import EXAMPLE, GuidanceCurve, film_guidance


def curve(text):
    return film_guidance(6.0, text).window(0)


def test_a_number_holds_everywhere():
    for guidance in (film_guidance(4.3), film_guidance(4.3, "  \n"), film_guidance(6.0, " 4.3 ")):
        assert all(guidance.window(w).at(s) == 4.3 for w in range(3) for s in (0.0, 0.37, 1.0))


def test_a_curve_is_linear_between_its_points_and_level_beyond():
    made = curve("0.9: 6, 0.5 : 4.5,\n0.1:1")
    for sigma in np.linspace(0, 1, 101):
        expected = np.interp(sigma, [0.1, 0.5, 0.9], [1, 4.5, 6])
        assert made.at(float(sigma)) == pytest.approx(expected, abs=1e-12)


def test_points_are_met_exactly():
    """A guidance of 1 saves half of a step only if it is exactly 1; a constant is its number."""
    made = curve(EXAMPLE)
    assert [made.at(s) for s in (1.0, 0.5, 0.0)] == [6.0, 4.0, 1.0]
    level = curve("1: 4.3, 0.7: 4.3, 0: 4.3")
    assert all(level.at(float(s)) == 4.3 for s in np.linspace(0, 1, 997))


def test_two_points_at_one_level_are_a_jump():
    made = curve("1: 6, 0.5: 5, 0.5: 1, 0: 1")
    assert made.at(0.75) == 5.5 and made.at(0.5000001) == pytest.approx(5, abs=1e-5)
    assert made.at(0.5) == made.at(0.49) == 1.0


def test_each_window_has_its_curve_and_the_last_holds_for_the_rest():
    guidance = film_guidance(6.0, "1: 6, 0: 2; 5; 1: 4, 0: 1;")
    assert [guidance.window(w).at(0.0) for w in (0, 1, 2, 3, 700)] == [2, 5, 1, 1, 1]
    assert guidance.window(0) == GuidanceCurve(((1.0, 6.0), (0.0, 2.0)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("strong", "'strong': its cfg must be a number from 0 to 100"),
        ("1: 6, 0.5", "'0.5': its cfg must be a number"),
        ("1: 6, : 4", "': 4': its noise level must be a number from 0 to 1"),
        ("1: 6,", "'': its noise level"),
        ("1.2: 6", "'1.2: 6': its noise level .* 0 to 1; nearest: 1"),
        ("1: 120", "'1: 120': its cfg .* 0 to 100; nearest: 100"),
        ("1: -2", "its cfg .* nearest: 0"),
        ("1: nan", "its cfg must be a number"),
        ("0: 1, 1: 6", "noise level 1 after 0; points must go from noise"),
        ("6;; 4", "'': its cfg"),
        (";", "'': its cfg"),
        ("1: 6: 4", "'1: 6: 4': its cfg"),
    ],
)
def test_what_cannot_be_read_is_told_with_an_example(text, says):
    with pytest.raises(ValueError, match=says) as told:
        film_guidance(6.0, text)
    assert "cfg_curve has" in str(told.value) and EXAMPLE in str(told.value)


@pytest.mark.parametrize("cfg", [-5.0, math.nan, math.inf, 100.5])
def test_a_scale_that_is_none_is_refused(cfg):
    with pytest.raises(ValueError, match=r"cfg is .*; it must be .*0 to 100"):
        film_guidance(cfg)
