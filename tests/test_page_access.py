"""The page for everyone: names, contrast, width, keyboard, themes; and texts that look like markup."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from browser_tools import NARROW, WIDE, Keys, open_site

FILES = Path(__file__).parents[1] / "src/softprompt/serving/page"
MARKUP = "<img src=x onerror=alert(1)> <b>good</b>"
VIEWS = ("classify", "file", "complete", "details")
CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const over = (top, under) => top.map((c, i) => (i < 3 ? (c * top[3] + under[i] * (255 - top[3])) / 255 : 255));
const white = [255, 255, 255, 255];
const background = (e) => e ? over(rgba(getComputedStyle(e).backgroundColor), background(e.parentElement)) : white;
const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
  const s = c[i] / 255;
  return sum + weight * (s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4);
}, 0);
const low = [];
for (const e of document.querySelectorAll('body *')) {
  const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join('');
  if (!text || !e.checkVisibility() || e.closest('.hidden, :disabled, svg, option')) continue;
  const under = background(e);
  const [a, b] = [light(over(rgba(getComputedStyle(e).color), under)), light(under)];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push(`${e.tagName} ${e.className}: ${text.slice(0, 30)} ${ratio.toFixed(2)}`);
}
return low;
"""
STRUCTURE = """
const faults = [];
const fault = (selector, isWrong, what) => document.querySelectorAll(selector).forEach(
  (e) => e.checkVisibility() && isWrong(e) && faults.push(`${what}: ${e.outerHTML.slice(0, 100)}`));
fault('input, select, textarea', (e) => !e.labels.length && !e.ariaLabel, 'no label');
fault('button, a', (e) => !e.textContent.trim(), 'no name');
fault('table', (e) => !e.caption?.textContent, 'no caption');
fault('th', (e) => !e.scope, 'no scope');
fault('svg', (e) => e.getAttribute('aria-hidden') !== 'true' && !e.getAttribute('aria-label'), 'no alternative');
fault('[style]', (e) => ![...e.style].every((n) => n === 'width' || n.startsWith('--')), 'style');
fault('[id]', (e) => document.querySelectorAll(`[id="${e.id}"]`).length > 1, 'id twice');
const headings = [...document.querySelectorAll('main h1')].filter((e) => e.checkVisibility());
if (headings.length !== 1) faults.push(`${headings.length} h1`);
return faults;
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with open_site(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def server(site):
    return site.server


@pytest.fixture
def page(site):
    with site.page() as found:
        yield found


def test_texts_never_become_markup(page):
    page.open("file").ready().choose("front")
    content = io.StringIO()
    csv.writer(content).writerows([[MARKUP], [MARKUP]])
    page.drop("<i>.csv", content.getvalue())
    page.click("#file-run")
    page.wait("document.querySelector('#file-run')?.textContent === 'Classify again'")
    assert MARKUP in page.texts("#file-results td div")
    assert page.texts("#file-setup h2") == ["<i>.csv"]
    page.click("a[href='#complete']")
    page.choose("base")
    page.write("#complete-fields textarea", MARKUP)
    page.click("#complete-run")
    page.wait("document.querySelector('#complete-result [aria-busy=false]')")
    assert page.text(".prompt") == MARKUP
    assert not page.js("document.querySelectorAll('main :is(img, b, i)').length")


def fill_view(page, view):
    """Show results in a view."""
    page.open(view, WIDE).ready()
    if view == "classify":
        page.choose("front", "joint", "pairs")
        page.set("#classify-threshold", 90)
        page.classify("good " * 5000)
    elif view == "file":
        page.choose("front", "joint")
        page.drop("a.csv", "text\ngood\n,\nawful service\n")
        page.click("#file-run")
        page.wait_text("#file-status", "Done")
    elif view == "complete":
        page.choose("base")
        page.complete("good service " * 30)
    else:
        page.choose("joint")
        page.wait_text("#details-status", "joint")
        page.click("summary")


@pytest.mark.parametrize("view", VIEWS)
def test_names_contrast_and_width(page, view):
    fill_view(page, view)
    assert page.driver.execute_script(STRUCTURE) == []
    for theme in ("light", "dark"):
        page.driver.execute_script(f"document.documentElement.dataset.theme = {theme!r}")
        assert page.driver.execute_script(CONTRAST) == []
    for width, height in (WIDE, (700, 800), NARROW):
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width == NARROW[0]}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        page.wait(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")


def test_keyboard(page):
    page.open().ready()
    keyboard = page.driver.switch_to
    keyboard.active_element.send_keys(Keys.TAB)
    assert page.js("document.activeElement.textContent") == "Skip to the content"
    keyboard.active_element.send_keys(Keys.ENTER)
    page.wait("document.activeElement.id === 'main'")
    keyboard.active_element.send_keys(Keys.TAB)
    assert page.js("document.activeElement.tagName") == "TEXTAREA"
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keyboard.active_element.send_keys("good", Keys.CONTROL, Keys.ENTER)
    page.wait("document.querySelector('#classify-results .result')")


def test_the_list_of_tasks_folds_on_a_narrow_screen(page):
    page.open("classify", NARROW).ready()
    assert not page.find("#tasks").is_displayed()
    page.click("#chooser-toggle")
    assert page.find("#tasks").is_displayed()
    page.choose("back", "joint")
    assert page.text("#chooser-summary") == "back, joint"


def test_the_theme_is_kept(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    colour = "getComputedStyle(document.body).backgroundColor"
    page.open().ready()
    dark = page.js(colour)
    page.click("#theme")
    light = page.js(colour)
    assert (page.text("#theme-name"), light != dark) == ("Light", True)
    page.open().ready()
    assert page.js(colour) == light
    page.click("#theme")
    assert (page.text("#theme-name"), page.js(colour)) == ("Dark", dark)
    page.click("#theme")
    assert page.text("#theme-name") == "Auto"


def test_the_files_need_nothing_else():
    namespaces = ("http://www.w3.org/2000/svg", "https://html.spec.whatwg.org")
    for path in FILES.iterdir():
        text = path.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "AdjacentHTML", "document.write", "eval(", "new Function", "style="):
            assert word not in text, (path.name, word)
        for namespace in namespaces:
            text = text.replace(namespace, "")
        assert "://" not in text, path.name
