"""Sizes of batches that are few, and never far from what is asked."""

import pytest

from unspoken.agents.models.ragged.buckets import bucket


def test_the_sizes_are_few() -> None:
    """Powers of two, and from 8 on one between each two."""
    sizes = sorted({bucket(rows) for rows in range(1, 129)})
    assert sizes == [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128]


def test_a_size_holds_its_rows_and_is_its_own() -> None:
    """No batch is cut, and padding stays below a third of it."""
    for rows in range(1, 1000):
        size = bucket(rows)
        assert size >= rows and bucket(size) == size
        assert rows <= 8 or size - rows < size / 3


@pytest.mark.parametrize("rows", [0, -1])
def test_no_rows_are_no_batch(rows: int) -> None:
    with pytest.raises(ValueError, match="a batch of"):
        bucket(rows)
