"""JupyterLab as a person meets it, in a real Chromium: the way in, and the explorer's notebook.
Screenshots lie in .cache/screenshots."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from make_readme import ROOT
from playwright.sync_api import expect

SHOTS = ROOT / ".cache" / "screenshots"
MINUTE = 60_000  # milliseconds, playwright's unit
PAPER, CONTROL = "paper@hand-vit-tiny, seed 0", "image_only@hand-vit-tiny, seed 0"


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def lab_command():
    "What `make lab` runs, with this Python in place of the one it would install."
    # these tests may themselves run under make
    outer = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    said = subprocess.run(
        ["make", "-n", "lab"], cwd=ROOT, env=outer, capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    program, lab, *rest = shlex.split(said)
    assert Path(program).name == "jupyter" and lab == "lab"
    return [sys.executable, "-m", "jupyterlab", *rest]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address that `make lab` opens, with a copy of the notebooks and settings of its own; ends
    with the module."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "nbs", root / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    folders = {
        name: str(root / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "IPYTHONDIR",
            "PROMPTSG_CACHE",
        )
    }
    # what JupyterLab takes for the person's browser: keeps the page that it is to open, which leads
    # on to the notebook
    browser = root / "browser"
    browser.write_text(f'#!/bin/sh\ncp "${{1#file://}}" "{root}/opened"\n')
    browser.chmod(0o755)
    environment = {**os.environ, **folders, "PYTHONPATH": str(ROOT), "BROWSER": str(browser)}
    options = [f"--port={free_port()}", "--IdentityProvider.token=", "--allow-root"]
    with open(root / "log", "w+") as log:
        server = subprocess.Popen(
            [*lab_command(), *options],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield address(server, root)
        finally:
            server.terminate()  # its kernels end with it
            server.wait(60)


def address(server, root, patience=180):
    "The address that a server opens in the browser, after so many seconds at most."
    for _ in range(2 * patience):
        if (root / "opened").exists() and (
            found := re.search(r'href="(http[^"?]*)', (root / "opened").read_text())
        ):
            return found[1]
        assert server.poll() is None, (root / "log").read_text()
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start: {(root / 'log').read_text()}")


@pytest.fixture(scope="module")
def explorer(lab, chromium):
    "The explorer's notebook, run from a fresh kernel to its end; the page stays open."
    SHOTS.mkdir(parents=True, exist_ok=True)
    page = chromium.new_page(viewport=dict(width=1366, height=768))
    # without the tabs that another test has opened
    page.goto(lab.replace("index.ipynb", "15_explorer.ipynb?reset"))
    idle = page.get_by_text("Python 3 (ipykernel) | Idle")
    idle.wait_for(timeout=3 * MINUTE)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_label("Words").wait_for(timeout=8 * MINUTE)
    idle.wait_for(timeout=MINUTE)
    yield page
    page.close()


def picture(page, view):
    "The picture whose description holds these words."
    return page.locator(f'img[alt*="{view}"]')


def change(page, view, act):
    """Do something, wait until that picture is another one, and return its description before and
    after."""
    image = picture(page, view)
    source, before = image.get_attribute("src"), image.get_attribute("alt")
    act()
    expect(image).not_to_have_attribute("src", source, timeout=MINUTE)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=MINUTE)
    return before, picture(page, view).get_attribute("alt")


def shoot(page, name):
    "A screenshot with the explorer's first row at the top."
    page.get_by_label("Version").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.screenshot(path=SHOTS / f"{name}.png")


def test_make_lab_opens_the_index(lab, chromium):
    assert lab.endswith("/lab/tree/index.ipynb")
    page = chromium.new_page(viewport=dict(width=1366, height=768))
    page.goto(lab)
    page.get_by_role("heading", name="promptsg").first.wait_for(timeout=3 * MINUTE)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=3 * MINUTE)
    assert page.get_by_text("official Jupyter news").count() == 0
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "lab-index.png")
    page.close()


def test_the_notebook_ran_to_its_end_without_an_error(explorer):
    assert explorer.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert explorer.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    shoot(explorer, "explorer-laptop")


def test_another_version_changes_the_curve(explorer):
    version = explorer.get_by_label("Version")
    written = lambda option: option.replace("\xa0", " ")  # ipywidgets' lists have hard spaces
    assert [written(option) for option in version.locator("option").all_inner_texts()] == [
        CONTROL,
        PAPER,
    ]
    for index, name in ((0, CONTROL), (1, PAPER)):
        before, after = change(
            explorer, "CMC curves; shown", lambda: version.select_option(index=index)
        )
        assert f"shown: {name}" not in before and f"shown: {name}" in after
    shoot(explorer, "explorer-version")


def test_a_typed_prompt_changes_picture_and_ranking(explorer):
    def typed():
        explorer.get_by_label("Words").fill("A {} hand in a red sleeve.")
        explorer.get_by_label("Words").press("Enter")

    before, after = change(explorer, "nearest gallery images", typed)
    assert before != after, "the ranking's similarities are in the description"
    expect(picture(explorer, "under the prompt")).to_have_attribute(
        "alt", re.compile("red sleeve"), timeout=MINUTE
    )
    expect(picture(explorer, "CMC curves; shown")).to_have_attribute(
        "alt", re.compile("this prompt"), timeout=MINUTE
    )
    shoot(explorer, "explorer-prompt")


def test_a_bad_prompt_is_answered_and_the_picture_stays(explorer):
    source = picture(explorer, "nearest gallery images").get_attribute("src")
    explorer.get_by_label("Words").fill("A {} and a {}")
    explorer.get_by_label("Words").press("Enter")
    expect(explorer.get_by_role("status").filter(has_text="2 places")).to_be_visible(timeout=MINUTE)
    assert picture(explorer, "nearest gallery images").get_attribute("src") == source
    shoot(explorer, "explorer-bad-prompt")


def test_every_control_is_reached_by_the_tab_key(explorer):
    explorer.get_by_label("Version").focus()
    reached = []
    for _ in range(20):
        reached.append(
            explorer.evaluate(
                "(document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim()"
            )
        )
        explorer.keyboard.press("Tab")
    wanted = [
        "Version",
        "Compare with",
        "Query",
        "Order",
        "Next query",
        "Random query",
        "Own picture",
        "or its path",
        "Prompt",
        "Words",
        "Its own words",
        "Map",
        "Overlay (%)",
        "Nearest shown",
        "Save as",
        "Replace the file",
        "Save",
    ]
    assert [name for name in wanted if not any(name in text for text in reached)] == []


def test_failures_two_versions_and_a_map_for_each_word(explorer):
    explorer.get_by_label("Order").select_option(label="worst first")
    expect(explorer.get_by_label("Query")).to_contain_text("AP", timeout=MINUTE)
    explorer.get_by_label("Compare with").select_option(index=1)
    expect(picture(explorer, "nearest gallery images")).to_have_count(2, timeout=MINUTE)
    explorer.get_by_label("Map").select_option(label="every word")
    expect(picture(explorer, "Where each word")).to_have_count(3, timeout=MINUTE)
    explorer.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=MINUTE)
    shoot(explorer, "explorer-failures")


def test_save_writes_a_file_and_says_where(explorer):
    for answer in ("Saved to", "exists already"):
        explorer.get_by_role("button", name="Save", exact=True).click()
        expect(explorer.get_by_role("status").filter(has_text=answer)).to_be_visible(timeout=MINUTE)


# what a person reads: the bounding boxes of text that sticks out, and pictures drawn too small
CLIPPED = """panel => {
    const right = panel.getBoundingClientRect().right + 1;
    const inner = [...panel.querySelectorAll('*')].filter(e => e.getClientRects().length);
    return {
        wide: inner.filter(e => e.getBoundingClientRect().right > right || (
            e.scrollWidth > e.clientWidth + 1 && !e.matches('input, select, option, button *'))
            && getComputedStyle(e).display !== 'inline').map(e => e.tagName + ' ' + e.className),
        labels: inner.filter(e => e.matches('label, button') && e.scrollWidth > e.clientWidth + 1
            ).map(e => e.textContent),
        scales: [...panel.querySelectorAll('img')].map(e => e.clientWidth / e.naturalWidth),
        least: Math.min(...inner.filter(e => e.matches('label, b, div[role=status], select, input'))
            .map(e => parseFloat(getComputedStyle(e).fontSize))),
    }
}"""


@pytest.mark.parametrize("width", [600, 1000, 1366])
def test_nothing_is_clipped_or_too_small_to_read(explorer, width):
    explorer.set_viewport_size(dict(width=width, height=2400))
    files = explorer.get_by_role("region", name="File Browser Section")
    if width == 600 and files.is_visible():  # a window so narrow has no room for the list of files
        explorer.keyboard.press("Control+b")
        expect(files).to_be_hidden()
    explorer.wait_for_timeout(1500)
    panel = (
        explorer.get_by_label("Version")
        .locator("xpath=ancestor::*[contains(@class, 'widget-vbox')]")
        .last
    )
    found = panel.evaluate(CLIPPED)
    shoot(explorer, f"explorer-{width}")
    assert found["wide"] == [] and found["labels"] == []
    # the labels of maps have 9 points, 15 pixels at 120 dots an inch: 9 are left
    assert found["least"] >= 12 and min(found["scales"]) > 0.6
    if width == 600:
        assert panel.evaluate("node => node.getBoundingClientRect().right <= innerWidth")


@pytest.mark.parametrize("name", ["05_inversion", "08_losses"])
def test_running_and_saving_a_notebook_leaves_git_clean(lab, chromium, tmp_path_factory, name):
    copied = max(tmp_path_factory.getbasetemp().glob("lab*")) / "nbs" / f"{name}.ipynb"
    before = copied.read_text(encoding="utf-8")
    assert before == (ROOT / "nbs" / copied.name).read_text(encoding="utf-8")
    page = chromium.new_page(viewport=dict(width=1366, height=768))
    page.goto(lab.replace("index.ipynb", f"{name}.ipynb?reset"))
    idle = page.get_by_text("Python 3 (ipykernel) | Idle")
    idle.wait_for(timeout=3 * MINUTE)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_text("Python 3 (ipykernel) | Busy").wait_for(timeout=MINUTE)
    for _ in range(3):  # idle, and still idle a second later: between two cells it may look idle
        idle.wait_for(timeout=5 * MINUTE)
        page.wait_for_timeout(1000)
    written = copied.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    for _ in range(100):
        if copied.stat().st_mtime_ns > written:
            break
        page.wait_for_timeout(200)
    else:
        raise AssertionError("JupyterLab did not save the notebook")
    assert copied.read_text(encoding="utf-8") == before
    page.close()
