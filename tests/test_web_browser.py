"""The pages in headless Chromium: faults beside fields, pushed updates, pages of trials, buttons, accessibility."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune_autotuner.folder import ExperimentFolder
from raytune_autotuner.records import to_json
from raytune_autotuner.storage import Storage
from tests.emulator.cluster import Emulator
from tests.example_experiment import Example, build
from tests.ome_cluster import NAMESPACE, crds, objects
from tests.waiting import until
from tests.web_site import DONE, RUNNING, STOPPED, fill, serving

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]
WAIT_MS = 120_000
SERIOUS = {"serious", "critical"}
CLIPPED = """() => [...document.querySelectorAll(".plot .area")]
    .filter((area) => Math.max(area.scrollWidth, area.querySelector(".main-svg").clientWidth) > area.clientWidth)
    .map((area) => area.getAttribute("aria-label"))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = fill(tmp_path_factory.mktemp("storage"))
    build(folder, Example(name="large", trials=120, requests=2, confirm=0))
    with serving(folder) as address:
        yield address, folder


@pytest.fixture
def page(browser: Any, site: tuple[str, Path]) -> Iterator[Any]:
    """A page of the server; whatever its scripts complain of is a fault."""
    with shown(browser, site[0]) as page:
        yield page


@contextmanager
def shown(browser: Any, address: str) -> Iterator[Any]:
    context = browser.new_context(base_url=address)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    yield page
    context.close()
    assert complaints == []


def test_a_fault_is_shown_beside_its_field_while_one_types(page: Any) -> None:
    """Tied to the field for screen readers too; Start is off until all is well; the text follows the form."""
    page.goto("/new?start=sglang")
    field = page.get_by_label("Trials of the search")
    field.fill("-5")
    fault = page.locator("#f-optimization-max_iterations-fault")
    fault.wait_for()
    assert "greater than or equal to 1" in fault.inner_text() or "-5" in fault.inner_text()
    assert field.get_attribute("aria-invalid") == "true"
    assert field.get_attribute("aria-describedby").split()[1] == fault.get_attribute("id")
    assert page.get_by_role("button", name="Start").is_disabled()
    field.fill("7")
    fault.wait_for(state="detached")
    assert "max_iterations: 7" in page.locator("#text").input_value()
    assert page.get_by_role("button", name="Start").is_enabled()


def test_models_and_runtimes_are_picked_from_the_cluster(browser: Any, tmp_path: Path) -> None:
    """With their kind and namespace; whether they are ready stands beside their fields, without a reload."""
    with Emulator(crds=crds()) as cluster:
        for each in yaml.safe_load_all(objects()):
            cluster.apply(yaml.safe_dump(each))
            if each["kind"] == "ClusterBaseModel":
                own = {**each, "kind": "BaseModel", "metadata": {"name": "own-model", "namespace": NAMESPACE}}
                cluster.apply(yaml.safe_dump(own))
        models = [*cluster.objects("ClusterBaseModel"), *cluster.objects("BaseModel")]
        assert len(models) == 2
        until(
            lambda: all(_is_ready(cluster, each) for each in models)
        )  # what the server has asked once it keeps for a while
        with serving(tmp_path, kubeconfig=cluster.kubeconfig) as address, shown(browser, address) as page:
            page.goto("/new?start=sglang")
            page.get_by_text("not in the cluster").first.wait_for()
            page.get_by_text("In the cluster: 2 models, 1 runtime").click()
            page.get_by_role("button", name="Use BaseModel own-model").click()
            page.wait_for_function("() => document.getElementById('text').value.includes('name: own-model')")
            page.get_by_role("button", name="Use ClusterServingRuntime srt-llama").click()
            page.wait_for_function("() => document.getElementById('text').value.includes('srt-llama')")
            text = page.locator("#text").input_value()
            assert "model_kind: BaseModel" in text
            assert f"namespace: {NAMESPACE}" in text
            assert page.locator("label[for=f-base_runtime] .badge").inner_text() == "Ready"
            assert page.locator("label[for=f-model-name] .badge").inner_text() == "Ready"


def _is_ready(cluster: Emulator, model: dict[str, Any]) -> bool:
    now = next(o for o in cluster.objects(model["kind"]) if o["metadata"]["name"] == model["metadata"]["name"])
    return bool((now.get("status") or {}).get("state") == "Ready")


def test_start_begins_what_is_written_at_that_moment(page: Any, site: tuple[str, Path]) -> None:
    """A field that was changed a moment ago counts, though the text has not followed yet."""
    page.goto("/new?start=sglang")
    sent: list[str] = []
    page.route("**/new/start", lambda route: (sent.append(route.request.post_data), route.abort()))
    page.route("**/new/form", lambda route: None)  # never answered
    page.get_by_label("Trials of the search").fill("7")
    page.get_by_role("button", name="Start").click()
    until(lambda: bool(sent) or page.wait_for_timeout(50))
    assert "optimization.max_iterations=7" in sent[0]


def test_a_text_that_does_not_parse_locks_the_form_for_as_long(page: Any) -> None:
    """Nothing of the form is lost, nor of the comments when it goes on."""
    page.goto("/new?start=sglang")
    text = page.locator("#text")
    good = "# mine\n" + text.input_value()
    text.fill(good + "oops: [")
    field = page.get_by_label("Trials of the search")
    page.get_by_text("cannot be read as it is").wait_for()
    assert field.is_disabled()
    assert field.input_value() == "20"
    text.fill(good)
    page.get_by_text("cannot be read as it is").wait_for(state="detached")
    field.fill("7")
    text.focus()  # somebody who only stands in the text must not keep it from following
    page.wait_for_function("() => document.getElementById('text').value.includes('max_iterations: 7')")
    assert text.input_value() == good.replace("max_iterations: 20", "max_iterations: 7")


def test_the_form_follows_the_text(page: Any) -> None:
    """Both ways."""
    page.goto("/new?start=sglang")
    text = page.locator("#text")
    text.fill(text.input_value().replace("max_iterations: 20", "max_iterations: 11"))
    page.locator("[name='optimization.max_iterations'][value='11']").wait_for()


def test_a_change_on_disk_is_shown_without_a_reload(page: Any, site: tuple[str, Path]) -> None:
    """The table says what the trial does now; what somebody has typed and opened stays."""
    folder = ExperimentFolder(Storage(str(site[1])), RUNNING)
    page.goto(f"/experiments/{RUNNING}")
    page.get_by_text("live", exact=True).wait_for()
    page.evaluate("() => { window.notReloaded = true; }")
    state = next(each for each in folder.states() if each.outcome is None)
    text = to_json(state).replace(f'"detail": "{state.detail}"', '"detail": "on the ninth cloud"')
    folder.root.write(f"trials/{state.trial.name}/state.json", text)
    page.get_by_text("on the ninth cloud").wait_for()
    assert page.evaluate("() => window.notReloaded")


def test_the_list_shows_an_experiment_that_appears(page: Any, site: tuple[str, Path]) -> None:
    """And keeps what was ticked."""
    page.goto("/experiments")
    page.get_by_text("live", exact=True).wait_for()
    page.get_by_label(f"Compare {DONE}").check()
    build(site[1], Example(name="newcomer", trials=2, requests=2, confirm=0))
    page.get_by_role("link", name="newcomer").wait_for()
    assert page.get_by_label(f"Compare {DONE}").is_checked()


def test_many_trials_come_in_pages_and_orders(page: Any) -> None:
    """The table alone changes, and the address with it; it can be done with the keyboard."""
    page.goto("/experiments/large")
    rows = page.locator("table.trials tbody tr")
    assert rows.count() == 50
    following = page.get_by_role("link", name="Next")
    following.focus()
    page.keyboard.press("Enter")
    page.get_by_text("page 2 of 3").wait_for()
    assert "page=2" in page.url
    page.get_by_role("link", name="Score").click()
    page.locator("th[aria-sort=descending]", has_text="Score").wait_for()
    assert "sort=score" in page.url


def test_the_stop_button_stops(page: Any, site: tuple[str, Path]) -> None:
    """Once it is confirmed: the request lies in the folder, and the page says so."""
    build(site[1], Example(name="to-be-stopped", trials=3, running=1, requests=2, confirm=0))
    page.goto("/experiments/to-be-stopped")
    said: list[str] = []
    page.once("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.get_by_role("button", name="Stop").click()
    until(lambda: bool(said) or page.wait_for_timeout(50))
    assert "to-be-stopped" in said[0]
    assert not (site[1] / "to-be-stopped" / "stop").exists()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Stopping…").wait_for()
    until(lambda: (site[1] / "to-be-stopped" / "stop").exists())


def test_the_plots_are_drawn_under_the_strict_policy(page: Any) -> None:
    """No script but ours, and none made of text."""
    page.goto(f"/experiments/{DONE}")
    page.locator("#plots[data-drawn]").wait_for(state="attached")
    assert page.locator("#plots .main-svg").count() >= 8
    page.get_by_text("The numbers as a table").first.click()
    assert page.locator("#plots table").first.is_visible()


@pytest.mark.parametrize("width", [1000, 1300, 1440])
def test_nothing_runs_out_of_a_window(page: Any, site: tuple[str, Path], width: int) -> None:
    """Neither a page nor a plot; what is wide, like the table of trials, is scrolled in a box of its own."""
    page.set_viewport_size({"width": width, "height": 900})
    for path in paths(site)[:-1]:
        page.goto(path)
        for box in page.locator("[data-plots]").all():
            box.and_(page.locator("[data-drawn]")).wait_for(state="attached")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, path
        assert page.evaluate(CLIPPED) == [], path


def test_of_a_wide_table_names_and_heads_stay_in_sight(page: Any) -> None:
    """Whichever of its parameters one looks at; its bar is within the window."""
    page.set_viewport_size({"width": 1000, "height": 900})
    page.goto("/experiments/large")
    box = page.get_by_role("region", name="Trials").and_(page.locator(".scroll"))
    box.scroll_into_view_if_needed()
    box.evaluate("(box) => box.scrollTo(box.scrollWidth, box.scrollHeight)")
    frame = box.bounding_box()
    assert frame["height"] < 900
    last = box.locator("tbody tr").last
    seen = [last.get_by_role("rowheader"), last.locator("td").last, box.get_by_role("columnheader").last]
    for each in (part.bounding_box() for part in seen):
        assert frame["x"] <= each["x"]
        assert each["x"] + each["width"] <= frame["x"] + frame["width"] + 1
        assert frame["y"] <= each["y"] < frame["y"] + frame["height"]


def test_the_log_of_a_trial_grows_on_the_page(page: Any, site: tuple[str, Path]) -> None:
    """As it is written."""
    build(site[1], Example(name="talking", trials=2, running=1, requests=2, confirm=0))
    folder = ExperimentFolder(Storage(str(site[1])), "talking")
    trial = next(each.trial.name for each in folder.states() if each.outcome is None)
    log = site[1] / "talking" / "trials" / trial / "engine.log"
    log.write_text("loading weights\n")
    page.goto(f"/experiments/talking/trials/{trial}")
    page.get_by_text("loading weights").wait_for()
    with log.open("a") as stream:
        stream.write("ready to serve\n")
    page.get_by_text("ready to serve").wait_for()


def test_a_log_that_begins_later_appears(page: Any, site: tuple[str, Path]) -> None:
    """The page was opened before anything was said; each line stands there once."""
    build(site[1], Example(name="silent", trials=2, running=1, requests=2, confirm=0))
    folder = ExperimentFolder(Storage(str(site[1])), "silent")
    trial = next(each.trial.name for each in folder.states() if each.outcome is None)
    below = site[1] / "silent" / "trials" / trial
    (below / "engine.log").unlink(missing_ok=True)
    page.goto(f"/experiments/silent/trials/{trial}")
    page.get_by_text("live", exact=True).wait_for()
    assert page.locator("#log").inner_text() == ""
    (below / "engine.log").write_text("loading weights\n")
    page.locator("#log", has_text="loading weights").wait_for()
    hide(page, True)
    hide(page, False)
    with (below / "engine.log").open("a") as stream:
        stream.write("ready to serve\n")
    page.locator("#log", has_text="ready to serve").wait_for()
    assert page.locator("#log").inner_text().count("loading weights") == 1


def hide(page: Any, hidden: bool) -> None:
    """As if somebody went to another tab, and came back."""
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_tabs_that_nobody_looks_at_hold_no_connection(browser: Any, site: tuple[str, Path]) -> None:
    """A browser allows six; what has changed meanwhile is shown when one comes back."""
    folder = ExperimentFolder(Storage(str(site[1])), RUNNING)
    context = browser.new_context(base_url=site[0])
    context.set_default_timeout(WAIT_MS)
    pages = [context.new_page() for _ in range(8)]
    for page in pages:
        page.goto(f"/experiments/{RUNNING}")
        page.get_by_text("live", exact=True).wait_for()
        hide(page, True)
    state = next(each for each in folder.states() if each.outcome is None)
    text = to_json(state).replace(f'"detail": "{state.detail}"', '"detail": "while nobody looked"')
    folder.root.write(f"trials/{state.trial.name}/state.json", text)
    hide(pages[0], False)
    pages[0].get_by_text("while nobody looked").wait_for()
    context.close()


def paths(site: tuple[str, Path]) -> list[str]:
    folder = ExperimentFolder(Storage(str(site[1])), DONE)
    records = folder.records()
    failed = next(r.trial.name for r in records if r.failure and r.failure.log_tail)
    good = next(r.trial.name for r in records if r.outcome == "completed")
    trials = f"/experiments/{DONE}/trials"
    return [
        *("/experiments", f"/experiments/{DONE}", f"/experiments/{RUNNING}", f"{trials}/{good}", f"{trials}/{failed}"),
        *(f"/compare?experiment={DONE}&experiment={STOPPED}", "/new?start=sglang", "/api", "/login", "/experiments/no"),
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_fault_of_accessibility(browser: Any, site: tuple[str, Path], scheme: str) -> None:
    """By axe-core: contrast, names, roles, order of headings."""
    from axe_playwright_python.base import AXE_SCRIPT

    context = browser.new_context(base_url=site[0], color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    found: list[str] = []
    for path in paths(site):
        page.goto(path)
        if page.locator("#plots").count():
            page.locator("#plots[data-drawn]").wait_for(state="attached")
        page.evaluate(AXE_SCRIPT)
        violations = page.evaluate("() => axe.run().then((result) => result.violations)")
        found += [
            f"{path}: {each['id']}: {each['nodes'][0]['html'][:120]}"
            for each in violations
            if each["impact"] in SERIOUS
        ]
    context.close()
    assert found == []
