"""Write the pages of docs/ and the API reference as a site of HTML pages.

    python docs/build_site.py site

pdoc makes the API reference from the docstrings.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pdoc.doc
import pdoc.render
from pdoc.render_helpers import format_signature, to_html

import fcn_jax

DOCS = Path(__file__).parent

# The public names, and the modules that the pages of docs/ import from or refer to.
MODULES = (
    "fcn_jax",
    "fcn_jax.data.channels",
    "fcn_jax.data.shapes",
    "fcn_jax.evaluation.metrics",
    "fcn_jax.inference.tiles",
    "fcn_jax.models.geometry",
    "fcn_jax.training.config",
    "fcn_jax.training.losses",
    "fcn_jax.training.steps",
)


def guides() -> dict[str, str]:
    """Return the Markdown of each page of docs/, in the order of the README's list."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    listed = readme.partition("## Documentation")[2]
    names = dict.fromkeys(re.findall(r"\(docs/(\w+)\.md", listed))
    return {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in names}


def guide_page(markdown: str) -> str:
    """Return the HTML of a page whose links lead to HTML pages too."""
    html = re.sub(r'href="(\w+)\.md', r'href="\1.html', to_html(markdown))
    page = pdoc.render.env.get_template("guide.html.jinja2")
    return page.render(title=_title(markdown), html=html)


def module_pages() -> dict[str, str]:
    """Return the HTML of each page of the API reference, by the name of its file."""
    # pdoc reads a module's dict, and a public name comes there when it is first used.
    vars(fcn_jax).update({name: getattr(fcn_jax, name) for name in fcn_jax.__all__})
    modules = {name: pdoc.doc.Module.from_name(name) for name in MODULES}
    # pdoc leaves modules out of the members, and fcn_jax.metrics is one.
    modules["fcn_jax"].members["metrics"] = modules["fcn_jax.evaluation.metrics"]
    pdoc.render.env.globals["all_modules"] = modules
    with (
        patch("inspect.formatannotation", _annotation),
        patch("pdoc.doc.formatannotation", _annotation),
        patch.dict(pdoc.render.env.filters, format_signature=_signature),
    ):
        pages = {
            f"{name.replace('.', '/')}.html": pdoc.render.html_module(module, modules)
            for name, module in modules.items()
        }
        pages["index.html"] = pdoc.render.html_index(modules)
        pages["search.js"] = pdoc.render.search_index(modules)
    return pages


def write_site(site: Path) -> None:
    """Write all pages into a folder."""
    texts = guides()
    pdoc.render.configure(
        docformat="google", show_source=False, template_directory=DOCS / "templates"
    )
    titles = {f"{name}.html": _title(text) for name, text in texts.items()}
    pdoc.render.env.globals["guides"] = titles
    pages = module_pages()
    pages |= {f"{name}.html": guide_page(text) for name, text in texts.items()}
    for name, text in pages.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # An introduction to code ends in "::" in docstrings.
        path.write_text(text.replace("::</p>", ":</p>"), encoding="utf-8")


def _title(markdown: str) -> str:
    return markdown.partition("\n")[0].removeprefix("# ")


_format = inspect.formatannotation


def _annotation(annotation: Any, *args: Any, **options: Any) -> str:
    """Format a type by its public name, such as jax.Array."""
    return re.sub(r"\.(jaxlib\._jax|_src\.\w+)\b", "", _format(annotation))


def _signature(signature: inspect.Signature, colon: bool) -> str:
    """Format a signature without the parent of a Flax module, which Flax passes."""
    kept = [p for p in signature.parameters.values() if p.name != "parent"]
    return format_signature(signature.replace(parameters=kept), colon)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/build_site.py FOLDER")
    write_site(Path(sys.argv[1]))
