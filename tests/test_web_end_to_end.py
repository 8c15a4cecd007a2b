"""A person in a browser, a real server, a real Ray: from the form to the manifest of the winner."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.storage import Storage
from raytune_autotuner.web.launching import Launcher
from tests.test_end_to_end import ours, write_task
from tests.waiting import until
from tests.web_site import serving

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(1500),
]
WAIT_MS = 600_000


def test_from_the_form_to_the_manifest(tmp_path: Path) -> None:
    """Start, watch trials appear, stop, resume, see the winner, take its manifest; nothing is left running."""
    from playwright.sync_api import sync_playwright

    text = write_task(tmp_path, "--tpot-s", "0.02", optimization__max_iterations=6).read_text()
    store = tmp_path / "store"
    store.mkdir()
    launcher = Launcher(Storage(str(store)), {**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        with serving(store, launcher) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(base_url=address)
            page.set_default_timeout(WAIT_MS)
            page.on("dialog", lambda asked: asked.accept())  # whether it is really to be stopped
            page.goto("/new?start=local")
            page.locator("#text").fill(text)
            page.locator("[name='task_name'][value='e2e']").wait_for()
            page.get_by_label("Trials of the search").fill("0")
            page.locator("#f-optimization-max_iterations-fault").wait_for()
            page.get_by_label("Trials of the search").fill("3")
            page.locator("#f-optimization-max_iterations-fault").wait_for(state="detached")
            page.get_by_label("Name of the experiment").fill("from-the-form")
            page.get_by_role("button", name="Start").click()
            page.get_by_role("heading", name="from-the-form").wait_for()

            page.locator("table.trials tbody tr", has_text="baseline").wait_for()  # without a reload
            page.locator("table.trials tbody tr", has_text="completed").first.wait_for()
            page.get_by_role("button", name="Stop").click()
            page.get_by_role("button", name="Resume").wait_for()
            before = {record.trial.name for record in ExperimentFolder(Storage(str(store)), "from-the-form").records()}

            page.get_by_role("button", name="Resume").click()
            page.locator("h1 .badge.done").wait_for()
            folder = ExperimentFolder(Storage(str(store)), "from-the-form")
            assert before < {record.trial.name for record in folder.records()}
            page.locator(".answer .verdict").wait_for()
            with page.expect_download() as download:
                page.get_by_role("link", name="Export manifest").click()
            manifest = download.value.path().read_text()
            assert "--tpot-s" in manifest
            page.get_by_role("link", name="Experiments").first.click()
            page.get_by_role("link", name="from-the-form").wait_for()
            browser.close()
    finally:
        until(lambda: not any(each.alive for each in [launcher.launch("from-the-form")] if each), 120)
        until(lambda: not ours("from-the-form"), 60)
