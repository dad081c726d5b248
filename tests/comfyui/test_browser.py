"""What a person does: open the page, open the template, press Run, see the picture."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from candela.demo import check
from tests.comfyui import graphs

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path; CHROMIUM=/path/to/it names one")
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
# Without these, Chromium asks its maker's servers about updates at every start.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture
def page(server):
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.goto(server.url)
        page.wait_for_function("window.app?.graph && document.querySelector('canvas')", timeout=60_000)
        page.wait_for_timeout(4000)
        yield page
        browser.close()


def shot(page, core, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{core.version}-{name}.png")


def open_template(page, name: str) -> None:
    """As a person does; the first visit begins with the template browser open."""
    if not page.get_by_text("All Templates").count():
        page.get_by_text("Templates", exact=True).first.click()
    page.get_by_text("candela", exact=True).first.click()
    page.get_by_text(name, exact=True).first.click()
    page.wait_for_function("window.app.graph.nodes.some(node => node.type === 'SaveImage')")
    page.wait_for_timeout(1500)


def run_button(page):
    return page.get_by_test_id("queue-button").or_(page.get_by_role("button", name="Run", exact=True)).first


def test_template_runs_in_the_browser(page, core, base):
    open_template(page, "workflow_z_image_reboot")
    shot(page, core, "template")
    missing = page.evaluate("window.app.graph.nodes.filter(node => node.has_errors).map(node => node.type)")
    assert missing == []
    before = set((base / "output").rglob("*.png"))
    run_button(page).click()
    for _ in range(120):
        page.wait_for_timeout(500)
        if new := set((base / "output").rglob("*.png")) - before:
            break
    page.wait_for_timeout(2000)
    shot(page, core, "picture")
    from PIL import Image

    assert new, "no picture after 60 s"
    assert check(Image.open(new.pop()).convert("RGB"), graphs.STAR).ok
    shown = page.evaluate("window.app.graph.nodes.find(node => node.type === 'SaveImage').imgs?.length ?? 0")
    assert shown == 1, "the picture is shown in its node"


BAD = {
    "unknown": ("CandelaLoadModel", "model", "lumina-image-22", "there is no model 'lumina-image-22' here"),
    "missing": ("CandelaLoadModel", "model", "z-image", "the model 'z-image' is not on this machine"),
    "corrupt": ("CandelaLoadModel", "model", "broken", "vae"),
    "not-a-number": ("CandelaLoadModel", "model", "not-a-number", "NaN"),
    "size": ("CandelaSampler", "width", 1000, "width 1000 is not a multiple of 16"),
}


@pytest.mark.parametrize("situation", BAD)
def test_an_error_is_shown_in_our_words(page, core, situation):
    node, widget, value, words = BAD[situation]
    open_template(page, "workflow_z_image_reboot")
    page.evaluate(
        """([type, name, value]) => {
            const node = window.app.graph.nodes.find(node => node.type === type)
            node.widgets.find(widget => widget.name === name).value = value
        }""",
        [node, widget, value],
    )
    run_button(page).click()
    page.wait_for_timeout(4000)
    shot(page, core, f"error-{situation}")
    text = page.inner_text("body")
    assert words in text, text[-1500:]
