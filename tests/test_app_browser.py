"""The page in a real browser without a window: the keyboard alone, two tabs, a closed tab, nothing fetched elsewhere.

Writes docs/app.png where ``DECODESIM_SCREENSHOT`` names a file.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.app.runs import Runs
from sim.app.serve import listening

pytest.importorskip("dash")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
PATIENCE_MS = 60_000
ABANDONED_S = 3.0

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


class Watched:
    """A browser with a new profile, the page's address, what its tabs complained of and asked of other places."""

    def __init__(self, context: Any, address: str, runs: Runs) -> None:
        self.context, self.address, self.runs = context, address, runs
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []

    def tab(self) -> Any:
        """A new tab with an answer on it."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: self._asked(request.url))
        page.goto(self.address)
        page.wait_for_selector("#sentence:not(:empty)")
        return page

    def _asked(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(url)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder, profile = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("profile")
    kept: list[Runs] = []
    usual = Runs.__enter__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runs, "__enter__", lambda self: kept.append(self) or usual(self))
        with listening(0, folder / "runs", ABANDONED_S) as (address, server):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with playwright.sync_playwright() as driver:
                context = driver.chromium.launch_persistent_context(
                    str(profile), executable_path=CHROMIUM, headless=True, args=FLAGS,
                    viewport={"width": 1400, "height": 1150},
                )  # fmt: skip
                yield Watched(context, address, kept[0])
                context.close()
            server.shutdown()


@pytest.fixture
def page(watched: Watched) -> Iterator[Any]:
    found = watched.tab()
    yield found
    found.close()
    assert (watched.complaints, watched.elsewhere) == ([], [])


def says(page: Any, start: str) -> None:
    """Wait until the answer begins so."""
    page.wait_for_function(
        "start => document.getElementById('sentence').textContent.split(': ')[1].startsWith(start)", arg=start
    )


def test_the_answer_comes_first_and_four_figures_are_drawn(page: Any) -> None:
    says(page, "8 x ")
    page.wait_for_function("() => document.querySelectorAll('.figures .main-svg .cartesianlayer .subplot').length >= 4")
    heights = page.eval_on_selector_all(".figures .js-plotly-plot", "all => all.map(one => one.clientHeight)")
    assert heights == [330] * 4
    assert page.inner_text("#facts").count("\n") >= 20
    if file := os.environ.get("DECODESIM_SCREENSHOT"):
        page.wait_for_timeout(500)
        page.screenshot(path=file)


def test_arrow_keys_move_a_slider_and_the_answer_follows(page: Any) -> None:
    slider = page.get_by_role("slider", name="Batch", exact=True)
    slider.focus()
    page.keyboard.press("ArrowRight")
    says(page, "12 x ")
    page.keyboard.press("Home")
    says(page, "1 x ")
    page.keyboard.press("End")
    says(page, "1024 x ")
    page.wait_for_selector("#batch[aria-valuetext='1,024 sequences']")
    assert "does not fit" in page.inner_text("#facts")


def test_the_tab_key_reaches_every_control_in_the_order_of_the_page(page: Any) -> None:
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("""() => {
            const at = document.activeElement;
            return at.id || (at.parentElement && at.parentElement.querySelector('[id]') || {}).id || '';
        }"""))  # fmt: skip
    wanted = ["device", "model", "format", "engine", "policy", "devices", "batch", "context", "prompt", "alpha",
              "gamma", "source", "rate", "output", "requests", "start"]  # fmt: skip
    assert [name for name in dict.fromkeys(reached) if name in wanted] == wanted


def test_a_list_is_chosen_from_by_keyboard_alone(page: Any) -> None:
    """Before speculative decoding stands autoregressive."""
    one_up(page, "Policy")
    page.wait_for_function("() => document.getElementById('policy').textContent.includes('autoregressive')")
    page.wait_for_function("() => document.getElementById('gamma').disabled")
    assert "1.00 times autoregressive" in page.inner_text("#sentence")


def test_every_control_has_a_name(page: Any) -> None:
    tree = page.locator("main").aria_snapshot()
    for label in ("Device", "Model", "Number format", "Engine", "Policy", "Run"):
        assert f'button "{label} ' in tree
    for label in ("Devices sharing the model", "Batch", "Context of each", "Prompt of a newcomer", "Acceptance rate α",
                  "Draft length γ", "Arrivals", "Output", "Requests"):  # fmt: skip
        assert f'slider "{label}"' in tree
    assert page.get_attribute("#sentence", "aria-live") == "polite" and page.get_attribute("html", "lang") == "en"


def test_what_does_not_fit_is_a_line_on_the_page_and_goes_again(page: Any) -> None:
    one_up(page, "Model")  # llama-3.1-70b
    page.wait_for_selector("#problem:not(:empty)")
    assert page.inner_text("#problem").startswith("h100-sxm: weights 141 GB")
    page.focus("#devices")
    page.keyboard.press("End")
    page.wait_for_selector("#sentence:not(:empty)")
    assert page.inner_text("#problem") == ""


def test_a_value_beyond_the_slider_is_a_line_on_the_page(page: Any) -> None:
    """What a script of the user's own might set."""
    page.evaluate("""() => {
        const slider = document.getElementById('batch'); slider.max = 99;
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(slider, '99');
        slider.dispatchEvent(new Event('input', {bubbles: true}));
    }""")
    page.wait_for_selector("#problem:not(:empty)")
    assert page.inner_text("#problem") == "batch: position '99': must be a whole number from 0 to 19"


def test_two_tabs_keep_their_own_values(watched: Watched, page: Any) -> None:
    other = watched.tab()
    page.focus("#batch")
    page.keyboard.press("Home")
    other.focus("#batch")
    other.keyboard.press("End")
    says(page, "1 x ")
    says(other, "1024 x ")
    page.keyboard.press("ArrowRight")
    says(page, "2 x ")
    assert other.inner_text("#sentence").split(": ")[1].startswith("1024 x ")
    other.close()


def test_a_run_is_started_by_keyboard_and_shown(watched: Watched, page: Any) -> None:
    page.focus("#requests")
    page.keyboard.press("Home")
    page.focus("#start")
    page.keyboard.press("Enter")
    page.wait_for_selector("#run-result table")
    assert page.locator("#run-result tbody tr").count() == 4
    assert "Saved in " in page.inner_text("#run-said") and watched.runs.under_way == 0


def test_cancel_ends_a_run(watched: Watched, page: Any) -> None:
    start_long(page)
    page.wait_for_function("() => !document.getElementById('cancel').disabled")
    page.click("#cancel")
    page.wait_for_function("() => document.getElementById('run-said').textContent.startsWith('Cancelled')")
    assert watched.runs.under_way == 0
    page.wait_for_function("() => !document.getElementById('start').disabled")


def test_a_closed_tab_ends_its_run_and_the_other_tab_goes_on(watched: Watched, page: Any) -> None:
    other = watched.tab()
    start_long(other)
    other.wait_for_function("() => document.getElementById('run-said').textContent.startsWith('Running')")
    assert watched.runs.under_way == 1
    other.close()
    end = time.monotonic() + 30
    while watched.runs.under_way and time.monotonic() < end:
        time.sleep(0.1)
    assert watched.runs.under_way == 0
    page.focus("#batch")
    page.keyboard.press("Home")
    says(page, "1 x ")


def one_up(page: Any, label: str) -> None:
    """Open a list with Enter, go one up from what is chosen, take it with Enter."""
    page.get_by_role("button", name=label).focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.checked")
    page.keyboard.press("ArrowUp")
    page.wait_for_function("() => document.activeElement.type === 'radio' && !document.activeElement.checked")
    page.keyboard.press("Enter")


def start_long(page: Any) -> None:
    """20,000 requests of 4,096 tokens at ten a second."""
    for slider in ("#requests", "#output"):
        page.focus(slider)
        page.keyboard.press("End")
    page.click("#start")


def test_the_screenshot_in_the_docs_is_small() -> None:
    assert (Path(__file__).parents[1] / "docs/app.png").stat().st_size < 300_000
