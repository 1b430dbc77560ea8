"""Few sizes in place of many, for what is made once a size, such as a captured CUDA graph."""


def bucket(rows: int) -> int:
    """The size that serves a batch of so many rows: 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, …

    From 8 on at most a third of a batch is padding, and twice as many rows are two sizes more.

    Raises:
        ValueError: Less than one row.
    """
    if rows < 1:
        raise ValueError(f"a batch of {rows} rows")
    size = 1 << (rows - 1).bit_length()
    between = size * 3 // 4
    return between if size > 8 and rows <= between else size
