import ast
import html
import pkgutil
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.__main__ import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def python_blocks(page):
    return [
        code
        for kind, code in FENCE.findall(page.read_text("utf-8"))
        if kind == "python"
    ]


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    prose = FENCE.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.+)$", prose, re.M)
    return [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]


def commands(page):
    """The commands of indented blocks, with continued lines joined."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    found = re.findall(r"^    ((?:python|fcn-jax) .+)$", text, re.M)
    return [re.sub("^fcn-jax", "python -m fcn_jax", line) for line in found]


def test_readme_is_short():
    assert len(README.read_text("utf-8").split()) < 1200


@each_page
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text("utf-8"))):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_relative_to(ROOT) and target.exists(), link
        assert not anchor or anchors(target).count(anchor) == 1, link


@each_page
def test_python_compiles_and_its_imports_exist(page):
    for code in python_blocks(page):
        compile(code, page.name, "exec")
        imports = [
            node
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        exec("\n".join(map(ast.unparse, imports)), {})


def test_first_lines_of_the_readme_run_as_pasted(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = reference.network("fcn32s").replace(class_names=("a", "b", "c", "d"))
    fcn_jax.save("runs/quickstart/model.safetensors", net)
    found = {}
    exec(python_blocks(README)[0], found)
    assert found["picture"].shape[0] > found["image"].shape[0]  # The legend.
    with Image.open("labels.png") as labels:
        np.testing.assert_array_equal(labels, found["labels"])


@each_page
def test_names_of_fcn_jax_exist(page):
    for name in set(
        re.findall(r"\bfcn_jax(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8"))
    ):
        pkgutil.resolve_name(name)


@each_page
def test_commands_have_their_options(page, capsys):
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[1:3] != ["-m", "fcn_jax"]:
            assert (ROOT / words[1]).exists(), line
            continue
        with pytest.raises(SystemExit, match="^0$"):
            main([words[3], "--help"])
        known = capsys.readouterr().out
        for word in words[4:]:
            if word.startswith("--") and not word.startswith("--config."):
                assert re.search(rf"{word.partition('=')[0]}\b", known), line


@each_page
def test_files_that_are_named_exist(page):
    folders = "benchmarks|configs|docs|examples|fcn_jax|tests"
    named = rf"(?<![\w/.])(?:{folders})/[\w/]+\.\w+"
    for file in re.findall(named, page.read_text("utf-8")):
        assert (ROOT / file).exists(), file


@each_page
def test_no_path_of_a_machine_is_named(page):
    own = re.findall(r"(?<![\w.])/(?:work|tmp|home|root)\b.*", page.read_text("utf-8"))
    assert not own


def test_design_names_every_module():
    tree = (ROOT / "docs" / "design.md").read_text("utf-8").partition("## Layers")[0]
    words = set(re.findall(r"\w+", tree))
    modules = {path.stem for path in ROOT.glob("fcn_jax/**/*.py")}
    assert modules <= words, modules - words


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the site by their names, and the folder that they lie in."""
    pytest.importorskip("pdoc")
    folder = tmp_path_factory.mktemp("site")
    runpy.run_path(str(ROOT / "docs" / "build_site.py"))["write_site"](folder)
    script = re.compile(r"<script.*?</script>", re.S)
    pages = folder.rglob("*.html")
    return {page: script.sub("", page.read_text("utf-8")) for page in pages}, folder


def modules_in_docs():
    """The modules that Python code in the docs imports from."""
    code = "\n".join(code for page in PAGES for code in python_blocks(page))
    return set(re.findall(r"^from (fcn_jax\.[\w.]+) import", code, re.M))


def test_site_has_every_public_name_and_no_private_one(site):
    pages, folder = site
    found = set(re.findall(r'<section id="(\w+)"', pages[folder / "fcn_jax.html"]))
    assert found == set(fcn_jax.__all__)
    for page, text in pages.items():
        private = re.findall(r'id="(?:\w+\.)*_(?!_init__)\w+"', text)
        assert not private, f"{page}: {private}"


def test_site_has_every_page_and_every_module_that_docs_import_from(site):
    pages, folder = site
    guides = {folder / f"{path.stem}.html" for path in ROOT.glob("docs/*.md")}
    modules = {folder / f"{m.replace('.', '/')}.html" for m in modules_in_docs()}
    assert guides | modules <= set(pages), (guides | modules) - set(pages)


def test_site_links_lead_to_pages_and_anchors(site):
    pages, folder = site
    for page in pages:
        for link in map(html.unescape, re.findall(r'href="([^"]+)"', pages[page])):
            if link.startswith(("https://", "http://")):
                continue
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if target.is_relative_to(folder):
                text = pages.get(target, "")
                assert target.exists(), f"{page}: {link}"
                assert not anchor or f'id="{anchor}"' in text, f"{page}: {link}"
            else:  # The folder site lies beside docs, so links lead on as from there.
                assert (ROOT / "docs" / file).exists(), f"{page}: {link}"


def test_site_shows_shapes_sections_and_types_as_written(site):
    pages, folder = site
    metrics = pages[folder / "fcn_jax" / "evaluation" / "metrics.html"]
    assert "<p>[C, C] int64, <code>confusion[true, predicted]</code>.</p>" in metrics
    assert re.search(r"Arguments:</h6>\s*<ul>\s*<li><strong>label:", metrics)
    assert re.search(r"Raises:</h6>\s*<ul>\s*<li><strong>ValueError:", metrics)
    for page, text in pages.items():
        plain = re.sub("<[^>]+>", "", text)
        artefacts = re.findall(r"\._src|jax\.jaxlib|::$|Alias for field", plain, re.M)
        assert not artefacts, f"{page}: {artefacts}"
