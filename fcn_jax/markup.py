"""HTML and SVG from Python, with all text escaped."""

import html

from fcn_jax.data.shorten import printable

_EMPTY = ("img", "input", "meta", "line", "circle", "polyline")  # Without content.


class Html(str):
    """Text that is HTML already, as `element` returns it."""


def element(tag: str, *children: object, **attributes: object) -> Html:
    """Return an element of HTML or SVG.

    Args:
        tag: its name.
        children: what lies in it. All but `Html` is escaped.
        attributes: an underscore in a name stands for a hyphen, one at its end for
            nothing: ``class_="x"``. Values are escaped.
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(printable(value))}"'
        for name, value in attributes.items()
    )
    if tag in _EMPTY:
        return Html(f"<{tag}{named}/>")
    return Html(f"<{tag}{named}>{join(*children)}</{tag}>")


def join(*children: object) -> Html:
    """Return children one after another, those that are not `Html` escaped."""
    return Html(
        "".join(
            c if isinstance(c, Html) else html.escape(printable(c)) for c in children
        )
    )


def table(head: list[object], rows: list[list[object]], **attributes: object) -> Html:
    """Return a table whose first cell in each row is the header of the row."""
    titles = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [
        element(
            "tr",
            element("th", first, scope="row"),
            *(element("td", cell) for cell in cells),
        )
        for first, *cells in rows
    ]
    return element(
        "table", element("thead", titles), element("tbody", *body), **attributes
    )
