import pytest

from fcn_jax.data.shorten import printable, shorten


@pytest.mark.parametrize(
    ("limit", "lines"),
    [(1, ["7", "... and 2 more"]), (2, ["7", "8", "... and 1 more"])]
    + [(limit, ["7", "8", "9"]) for limit in (3, 4)],
)
def test_items_beyond_the_limit_are_counted(limit, lines):
    assert shorten([7, 8, 9], limit) == lines


def test_control_characters_are_escaped_and_letters_are_not():
    assert printable("Straße \n\x1b[2J\udc80") == r"Straße \n\x1b[2J\udc80"
