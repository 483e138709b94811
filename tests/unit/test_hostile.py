"""Hostile input: a fixed sample of what `benchmarks/hostile.py` tries thousands of."""

import pytest

hypothesis = pytest.importorskip("hypothesis")

from hostile import PROPERTIES  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_there_is_a_result_or_a_plain_error(name):
    check, strategy = PROPERTIES[name]
    FIXED(given(strategy)(check))()
