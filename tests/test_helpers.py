"""Of the helpers of the tests: what the usual suite leaves out, and that it leaves no value out."""

import pytest

from tests.helpers import thinned


@pytest.mark.parametrize("every", [2, 3])
def test_every_value_of_every_axis_is_usual_and_every_combination_is_there(every):
    rows = thinned("abcd", [1, 2, 3], [(None, 5), (False, 6)], every=every)
    assert len({row.values for row in rows}) == 4 * 3 * 2
    usual = [row.values for row in rows if not row.marks]
    assert len(usual) == 24 // every
    assert [set(column) for column in zip(*usual, strict=True)] == [set("abcd"), {1, 2, 3}, {None, False}, {5, 6}]
