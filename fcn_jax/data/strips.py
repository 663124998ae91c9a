"""Strips of rows, so that a large image need not be computed at once."""


def row_strips(height: int, row_values: int, most: int) -> list[slice]:
    """Return slices that cut the rows of an image into strips of bounded size.

    Args:
        height: number of rows.
        row_values: values in a row.
        most: values in a strip, unless one row more makes the strips equal.
    """
    count = max(1, -(-height * row_values // most))
    rows = max(1, -(-height // count))
    return [slice(i, min(i + rows, height)) for i in range(0, height, rows)]
