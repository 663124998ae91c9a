from fcn_jax.markup import Html, element, join, table


def test_text_and_values_are_escaped():
    assert element("p", '<script>"&', title='"><b>') == (
        '<p title="&quot;&gt;&lt;b&gt;">&lt;script&gt;&quot;&amp;</p>'
    )


def test_elements_nest_without_being_escaped_again():
    assert element("p", element("b", "a"), " & ", Html("&nbsp;")) == (
        "<p><b>a</b> &amp; &nbsp;</p>"
    )


def test_underscores_of_attributes_become_hyphens():
    assert element("label", for_="x", aria_label="y") == (
        '<label for="x" aria-label="y"></label>'
    )


def test_names_that_are_no_unicode_can_be_written():
    assert join("a\udcff\n").encode() == b"a\\udcff\\n"


def test_table_has_headers_of_rows_and_columns():
    assert table(["a", "b"], [["c", 1]]) == (
        '<table><thead><tr><th scope="col">a</th><th scope="col">b</th></tr></thead>'
        '<tbody><tr><th scope="row">c</th><td>1</td></tr></tbody></table>'
    )
