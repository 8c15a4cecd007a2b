"""Writing a task: a form, its text, and what it would do, side by side; and starting it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, File, Request, UploadFile
from starlette.responses import HTMLResponse, RedirectResponse, Response

from raytune_autotuner import overview, redaction
from raytune_autotuner.errors import SpecError
from raytune_autotuner.planning.init_task import Wish, write_task
from raytune_autotuner.task.taskfile import MAX_BYTES
from raytune_autotuner.web import drafts, form_reading, forms, task_text
from raytune_autotuner.web.drafts import Draft
from raytune_autotuner.web.form_reading import Given
from raytune_autotuner.web.launching import new_name
from raytune_autotuner.web.pages import Here
from raytune_autotuner.web.problems import Fault
from raytune_autotuner.web.site import Site
from raytune_autotuner.web.templating import page

router = APIRouter(include_in_schema=False)
STARTS = {
    "local": Wish(model="gemma-3-270m", engine="llamacpp", backend="local", name="local-demo", concurrency=(4,)),
    "sglang": Wish(model="my-model", engine="sglang", runtime="my-runtime", tokenizer="my-org/my-model"),
    "vllm": Wish(model="my-model", engine="vllm", runtime="my-runtime", tokenizer="my-org/my-model"),
}
"""What a new task begins with."""


@router.get("/new")
def new(request: Request, site: Here, start: str = "", copy: str = "") -> HTMLResponse:
    """A task to begin with: one that comes along, or that of an experiment."""
    if copy:
        return _page(request, site, Written(_task_of(site, copy), ""))
    if start not in STARTS:
        start = "local" if importlib.util.find_spec("xllamacpp") and not site.settings.kubeconfig else "sglang"
    return _page(request, site, Written(write_task(STARTS[start]), ""), start=start)


def _task_of(site: Site, name: str) -> str:
    """The task of an experiment without its secrets, as it was written where it was started from here."""
    folder = site.library.folder(name)
    own = folder.root.read("launch/task.yaml") or ""
    data = task_text.data_of(own)
    if not data:
        said = overview.read_task(folder).model_dump(mode="json", exclude_defaults=True)
        return task_text.to_text(redaction.hidden(said))
    shown = redaction.hidden(data)
    text = task_text.rewritten(own, shown)
    masked = redaction.text(text)  # comments too
    return masked if task_text.data_of(masked) == shown else task_text.to_text(shown)


async def _posted(request: Request) -> Given:
    form = await request.form(max_files=0, max_fields=2000)
    return {key: [str(value) for value in form.getlist(key)] for key in form}


Posted = Annotated[Given, Depends(_posted)]


@dataclass(frozen=True)
class Written:
    """What was sent of a task: its text with what was changed in the form."""

    text: str
    shown: str
    """The last text that the form could show."""
    faults: Sequence[Fault] = ()
    """Of what cannot be read in the form."""

    @classmethod
    def of(cls, given: Given) -> Written:
        shown = _first(given, "shown")
        text = _first(given, "text", shown)
        before, data = task_text.data_of(shown), task_text.data_of(text)
        if data is None:
            return cls(text, shown)
        wanted, faults = form_reading.read(given, before or {}, data)
        return cls(task_text.rewritten(text, wanted), shown, faults)


def _first(given: Given, name: str, otherwise: str = "") -> str:
    return next(iter(given.get(name, ())), otherwise).replace("\r\n", "\n")


@router.post("/new/form")
def changed(request: Request, site: Here, given: Posted) -> HTMLResponse:
    """The form or the text has changed: both, and the plan."""
    return _page(request, site, Written.of(given), given)


@router.post("/new/upload")
def upload(request: Request, site: Here, file: Annotated[UploadFile, File()]) -> HTMLResponse:
    content = file.file.read(MAX_BYTES + 1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        faults = [Fault(place="", message="this is not a text file in UTF-8")]
        return _page(request, site, Written("", "", faults))
    return _page(request, site, Written(text, ""))


@router.post("/new/download")
def download(given: Posted) -> Response:
    headers = {"Content-Disposition": "attachment; filename=task.yaml"}
    return Response(Written.of(given).text, headers=headers, media_type="application/yaml")


@router.post("/new/start")
def start(request: Request, site: Here, given: Posted) -> Response:
    """Begin the experiment, or show what keeps it from it."""
    written = Written.of(given)
    draft = drafts.check(written.text)
    if draft.task is None or written.faults:
        return _page(request, site, written, given, code=422)
    chosen = _first(given, "name").strip() or new_name(draft.task.task_name, site.settings.storage)
    try:
        if _first(given, "where") == "ray":
            job = _submitted(site, draft, chosen, _first(given, "address").strip())
            return page(request, "submitted.html", name=chosen, job=job)
        site.launcher.start(chosen, written.text)
    except SpecError as error:
        faults = [Fault.of(each) for each in error.problems]
        return _page(request, site, written, given, start_faults=faults, code=422)
    return RedirectResponse(f"/experiments/{chosen}", 303)


def _submitted(site: Site, draft: Draft, name: str, address: str) -> str:
    """Hand the experiment to a Ray cluster; where its job can be seen."""
    from raytune_autotuner import submit
    from raytune_autotuner.jobs import JobServer  # slow to import
    from raytune_autotuner.shipping import pack

    assert draft.task is not None
    storage = submit.checked_storage(site.settings.storage.location())
    experiment = submit.Experiment(draft.task, submit.checked_name(name), storage)
    server = JobServer.connect(address or site.settings.ray_address or "")
    with submit.ordered(experiment, pack(draft.task), ship_package=False) as order:
        server.submit(order)
        return server.page(order.submission_id)


@router.get("/new/cluster")
def cluster(request: Request, site: Here) -> HTMLResponse:
    """Models and runtimes to choose from, asked of the cluster; the form is shown again with what it now knows."""
    stock = site.shop.stock()
    shown = page(request, "cluster.html", stock=stock)
    if stock.models or stock.runtimes:
        shown.headers["HX-Trigger-After-Settle"] = "stocked"
    return shown


def _page(
    request: Request,
    site: Site,
    written: Written,
    given: Given | None = None,
    *,
    code: int = 200,
    start_faults: Sequence[Fault] = (),
    start: str = "",
) -> HTMLResponse:
    given, draft, data = given or {}, drafts.check(written.text), task_text.data_of(written.text)
    said = {fault.place for fault in written.faults}
    found = [*written.faults, *(fault for fault in draft.faults if fault.place not in said)]
    shown = written.shown if data is None else written.text
    return page(
        request,
        "new.html",
        code,
        form=forms.make(task_text.data_of(shown), found, site.shop.known()),
        locked=data is None,
        shown=shown,
        text=written.text,
        faults=found,
        plan=draft.plan if not found else None,
        start_faults=start_faults,
        starts=STARTS,
        start=start,
        name=_first(given, "name"),
        where=_first(given, "where", "here"),
        address=_first(given, "address") or site.settings.ray_address or "",
        storage=site.settings.storage.location(),
    )
