"""The published site: every notebook has its page, nothing on it is dead, raw or missing, and it
fits a laptop and a telephone.

The pages are made by nbdev and pandoc; where Quarto is on the PATH the real site is built too and
has to pass the same checks. What a person would look at is left in .cache/screenshots/."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import quote, unquote, urldefrag

import pypandoc
import pytest
from make_readme import ROOT
from render_site import build_site, copy_project, output_file, render_site
from test_project import NOTEBOOKS

from promptsg._modidx import d as promptsg_index

BUILDERS = {"pandoc": render_site, **({"quarto": build_site} if shutil.which("quarto") else {})}
PAGES = {path: output_file(path.relative_to("nbs")).as_posix() for path in NOTEBOOKS}
WIDTHS = (1280, 400)
# how GitHub lays out a README, in short
GITHUB = """
body { width: 950px; margin: 32px auto; font: 16px/1.5 "Liberation Sans", sans-serif }
h1, h2 { padding-bottom: .3em; margin: 24px 0 16px; border-bottom: 1px solid }
p, ul, table, pre, blockquote { margin: 0 0 16px }
pre { padding: 16px; font-size: 85%; line-height: 1.45; overflow: auto }
li + li { margin-top: .25em }
img { max-width: 100% }
table { border-collapse: collapse }
td, th { padding: 6px 13px; border: 1px solid }
"""
# where there is such a page
LOOKED_AT = (
    "index.html",
    "fusion.html",
    "metrics.html",
    "plots.html",
    "training.html",
    "versions.html",
    "explorer.html",
)
FACTS = """() => {
    const all = (query, fact) => [...document.querySelectorAll(query)].map(fact);
    const text = e => e.innerText.trim();
    const scrolls = e => e && (/auto|scroll|hidden/.test(getComputedStyle(e).overflowX)
        || scrolls(e.parentElement));
    return {
        ids: all('[id]', e => e.id),
        links: all('a[href]', e => e.getAttribute('href')),
        headings: all('main :is(h1, h2, h3, h4, h5, h6)', e => [Number(e.tagName[1]), text(e)]),
        documented: all('main :is(h3, h4, a[href*="/blob/"][href*="#L"])',
            e => e.getAttribute('href') || text(e)),
        empty: all('main section', e => e)
            .filter(e => !e.querySelector('img') && text(e) === text(e.firstElementChild))
            .map(text),
        images: all('main img', e => ({
            name: e.getAttribute('src').slice(0, 80), shown: e.complete && e.naturalWidth > 0,
            described: Boolean(e.alt || e.closest('figure')?.querySelector('figcaption')?.innerText)
        })),
        code: all('main pre', e => e.innerText),
        text: document.querySelector('main').innerText,
        errors: all('main .cell-output-error', e => e.innerText),
        boxes: all('main :is(table, .math)', e => e).map(e => {
            const within = Boolean(scrolls(e.parentElement));
            const right = e.getBoundingClientRect().right;
            const own = /auto|scroll/.test(getComputedStyle(e).overflowX) || !e.clientWidth;
            return {
                text: e.tagName + ' ' + e.className + ': ' + e.innerText.slice(0, 60),
                fits: within || own || e.scrollWidth <= e.clientWidth + 1,
                inside: within || right <= innerWidth + 1,
            };
        }),
        wide: all('main *', e => e)
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .filter(e => !scrolls(e.parentElement))
            .map(e => e.tagName + ' ' + e.className + ': ' + (e.innerText || '').slice(0, 60)),
        width: document.documentElement.scrollWidth,
    }
}"""


SETTINGS = promptsg_index["settings"]
ADDRESS = SETTINGS["doc_host"] + SETTINGS["doc_baseurl"] + "/"
SOURCE = SETTINGS["git_url"] + "/blob/" + SETTINGS["branch"] + "/"


@pytest.fixture(scope="module", params=BUILDERS)
def site(request, tmp_path_factory):
    "The folder of the built site."
    return BUILDERS[request.param](copy_project(tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def pages(site, chromium):
    "(width, page's path in the site) -> what Chromium shows there. Leaves screenshots."
    found = {}
    tab = chromium.new_page()
    for path in sorted(path for path in site.rglob("*.html") if "site_libs" not in path.parts):
        tab.goto(path.as_uri())
        name = path.relative_to(site).as_posix()
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 800})
            found[width, name] = tab.evaluate(FACTS)
            if name in LOOKED_AT:
                screenshot(tab, f"{site.name.strip('_')}-{path.stem}-{width}")
    tab.close()
    return found


def screenshot(tab, name):
    (ROOT / ".cache/screenshots").mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=ROOT / f".cache/screenshots/{name}.png", full_page=True)


def cells_of(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]


def problems(pages, wrong, width=WIDTHS[0]):
    "{page: what `wrong(facts)` finds there}, without the pages on which it finds nothing."
    found = {name: list(wrong(facts)) for (at, name), facts in pages.items() if at == width}
    return {name: what for name, what in found.items() if what}


def test_every_notebook_has_a_page(pages):
    assert set(PAGES.values()) <= {name for _, name in pages}
    assert (
        problems(pages, lambda facts: [] if len(facts["text"]) > 200 else [facts["text"]]) == {}
    ), "nothing is on these pages"


def test_title_cells_hold_title_and_sentence_alone():
    for path in NOTEBOOKS:
        title = next(
            "".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "markdown"
        )
        assert re.fullmatch(r"# .+(\n+> .+)?(\n+- \w+: .+)*\n*", title), (
            f"{path}: nbdev drops from the page what else is in the title's cell"
        )


def links_of(path):
    "The notebooks that a notebook's text leads to, as paths from the root."
    text = "".join("".join(cell["source"]) for cell in cells_of(path))
    for link in re.findall(r"\]\(([\w./]+\.ipynb)", text):
        yield (ROOT / path.parent / link).resolve().relative_to(ROOT)


def test_the_index_leads_to_the_start_and_the_start_to_every_notebook():
    start = Path("nbs/tutorials/start.ipynb")
    assert start in links_of(Path("nbs/index.ipynb"))
    assert {*NOTEBOOKS} - {*links_of(start)} == {start}


def test_nothing_written_is_lost(pages):
    for path, page in PAGES.items():
        shown = "".join(pages[WIDTHS[0], page]["text"].split())
        text = "\n".join(
            "".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "markdown"
        )
        for line in (re.sub(r"^(#+|>|-|\d+\.) ", "", line.strip()) for line in text.splitlines()):
            # plain words, which no formatting changes
            if re.fullmatch(r"(?!.*(--|\.\.))[\w ,.:;?()-]+", line):
                assert "".join(line.split()) in shown, f"{path}: {line}"


def target(link, page):
    "(page, anchor) inside the site for a link found on `page`; None for one that leads elsewhere."
    if link.startswith(ADDRESS):
        link, page = link.removeprefix(ADDRESS), ""
    elif re.match(r"[a-z]+:", link) or link in ("", "#"):
        return None
    address, anchor = urldefrag(link)
    parts = [] if address else [page]
    for part in (Path(page).parent / unquote(address.split("?")[0])).parts if address else []:
        parts = parts[:-1] if part == ".." else parts + [part]
    return "/".join(parts) or "index.html", unquote(anchor)


def test_no_link_inside_the_site_is_dead(site, pages):
    ids = {name: set(facts["ids"]) for (_, name), facts in pages.items()}

    def dead(name, facts):
        for link in facts["links"]:
            path, anchor = target(link, name) or ("index.html", "")
            if not (site / path).is_file() or anchor and path in ids and anchor not in ids[path]:
                yield link

    found = {name: list(dead(name, facts)) for (_, name), facts in pages.items()}
    assert {name: links for name, links in found.items() if links} == {}


def test_source_links_lead_to_the_definition(pages):
    def wrong(facts):
        for link, name in zip(facts["documented"], facts["documented"][1:]):
            if link.startswith(SOURCE):
                file, _, line = link.removeprefix(SOURCE).partition("#L")
                # decorators come first
                near = (
                    (ROOT / file)
                    .read_text(encoding="utf-8")
                    .splitlines()[int(line) - 1 : int(line) + 5]
                )
                if not re.search(
                    rf"(def|class) {re.escape(name.split('.')[-1])}\b", "\n".join(near)
                ):
                    yield link, name

    assert problems(pages, wrong) == {}


def test_every_exported_name_is_documented_with_a_link_to_its_source(pages):
    for module, symbols in promptsg_index["syms"].items():
        for symbol, (address, file) in symbols.items():
            name = symbol.removeprefix(module + ".")
            if "." not in name and not name.startswith("_"):
                facts = pages[WIDTHS[0], address.partition("#")[0]]
                at = (
                    facts["documented"].index(name)
                    if name in facts["documented"]
                    else pytest.fail(f"{symbol} is not on its page")
                )
                assert facts["documented"][at - 1].startswith(SOURCE + file), symbol
                assert any(re.match(rf"(def|class) {name}\(", code) for code in facts["code"]), (
                    f"{symbol} has no signature"
                )


def test_no_directive_is_left_raw(pages):
    assert (
        problems(
            pages,
            lambda facts: re.findall(
                r"^\s*(?:#\|.*|:::.*|%%\w+.*)", "\n".join([facts["text"], *facts["code"]]), re.M
            ),
        )
        == {}
    )


def test_no_output_is_an_error(pages):
    assert (
        problems(
            pages,
            lambda facts: (
                facts["errors"]
                + re.findall(r"Traceback \(most recent call last\).*", facts["text"])
            ),
        )
        == {}
    )


def test_pictures_are_there_and_described(pages):
    assert (
        problems(
            pages, lambda facts: [image["name"] for image in facts["images"] if not image["shown"]]
        )
        == {}
    ), "missing pictures"
    missing = problems(
        pages, lambda facts: [image["name"] for image in facts["images"] if not image["described"]]
    )
    assert missing == {}, "say what these pictures show: `#| fig-alt: ...` first in the cell"


def test_headings_go_down_one_level_at_a_time(pages):
    def jumps(facts):
        levels = [(1, "")] + facts["headings"]
        yield from (
            text for (before, _), (level, text) in zip(levels, levels[1:]) if level > before + 1
        )
        yield from (text for level, text in facts["headings"][1:] if level == 1)

    assert problems(pages, jumps) == {}


def test_no_section_is_empty(pages):
    assert problems(pages, lambda facts: facts["empty"]) == {}, (
        "a cell that exports only values shows on the page with `#| exports`"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_the_window(pages, width):
    assert (
        problems(
            pages, lambda facts: facts["wide"] + [facts["width"]] * (facts["width"] > width), width
        )
        == {}
    ), "wider than the window"


def test_equations_and_tables_scroll_in_their_own_box_on_a_telephone(pages):
    boxes = {name: facts["boxes"] for (width, name), facts in pages.items() if width == 400}
    assert sum(map(len, boxes.values())) > 50
    wide = {
        name: [box["text"] for box in some if not (box["fits"] and box["inside"])]
        for name, some in boxes.items()
    }
    assert {name: some for name, some in wide.items() if some} == {}


def test_every_page_opens_its_notebook_in_colab_and_binder(pages):
    for path, page in PAGES.items():
        links = pages[WIDTHS[0], page]["links"]
        source = f"{SETTINGS['git_url'].removeprefix('https://github.com/')}"
        branch = SETTINGS["branch"]
        assert f"https://colab.research.google.com/github/{source}/blob/{branch}/{path}" in links
        labpath = quote(str(path), safe="")
        assert f"https://mybinder.org/v2/gh/{source}/{branch}?labpath={labpath}" in links


def test_llms_txt_is_published_and_names_pages_that_exist(site):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    links = re.findall(r"^- \[.+\]\((.+?)\): \S", text, re.M)
    assert len(links) > len(NOTEBOOKS)
    assert [link for link in links if not (site / link.removeprefix(ADDRESS)).is_file()] == []


def test_figures_stay_legible_on_a_dark_page(site, chromium):
    tab = chromium.new_page(viewport={"width": WIDTHS[0], "height": 800})
    for name in ("index.html", "plots.html"):
        tab.goto((site / name).as_uri())
        tab.evaluate("document.body.classList.add('quarto-dark')")
        grounds = tab.evaluate(
            "[...document.querySelectorAll('main img')].map(e => "
            "getComputedStyle(e).backgroundColor)"
        )
        assert grounds and set(grounds) == {"rgb(255, 255, 255)"}
        screenshot(tab, f"{site.name.strip('_')}-{name.removesuffix('.html')}-dark")
    tab.close()


def test_the_readme_is_read_in_two_screens(chromium, tmp_path):
    "Of 1,080 pixels, in GitHub's column and type sizes."
    page, tab = tmp_path / "readme.html", chromium.new_page(viewport={"width": 1100, "height": 800})
    text = pypandoc.convert_file(ROOT / "README.md", "html", format="gfm")
    page.write_text(f"<style>{GITHUB}</style><base href='{ROOT.as_uri()}/'>{text}", "utf-8")
    tab.goto(page.as_uri())
    assert tab.evaluate("document.querySelector('img[src$=\"steps.png\"]').naturalWidth") > 0
    assert tab.evaluate("document.documentElement.scrollHeight") <= 2 * 1080
    tab.close()


def test_the_landing_page_says_what_the_kit_does_before_one_scrolls_far(site, chromium):
    tab = chromium.new_page(viewport={"width": WIDTHS[0], "height": 800})
    tab.goto((site / "index.html").as_uri())
    first = tab.evaluate("document.querySelector('main h2').getBoundingClientRect().top")
    above = lambda query: tab.evaluate(
        "query => [...document.querySelectorAll(query)].map(e => e.getBoundingClientRect())", query
    )
    assert first < 1.5 * 800
    assert [
        len([box for box in above(query) if box["bottom"] <= first])
        for query in ("main img", "main pre", "main .entry a")
    ] == [1, 1, 4]
    assert max(box["top"] for box in above("main pre")[:1]) < 800
    tab.close()
