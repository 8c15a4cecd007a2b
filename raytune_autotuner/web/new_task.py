"""Writing a task: a form, its text, and what it would do, side by side; and starting it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from raytune_autotuner import overview
from raytune_autotuner.errors import SpecError
from raytune_autotuner.planning.init_task import Wish, write_task
from raytune_autotuner.task import taskfile
from raytune_autotuner.task.taskfile import MAX_BYTES
from raytune_autotuner.web import drafts, forms
from raytune_autotuner.web.drafts import Draft
from raytune_autotuner.web.launching import new_name
from raytune_autotuner.web.pages import Here
from raytune_autotuner.web.problems import Fault
from raytune_autotuner.web.site import Site
from raytune_autotuner.web.templating import page

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form(max_length=MAX_BYTES)]
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
        return _page(request, site, _task_of(site, copy))
    if start not in STARTS:
        start = "local" if importlib.util.find_spec("xllamacpp") and not site.settings.kubeconfig else "sglang"
    return _page(request, site, write_task(STARTS[start]), start=start)


def _task_of(site: Site, name: str) -> str:
    folder = site.library.folder(name)
    own = folder.root.read("launch/task.yaml")
    if own:
        return own
    return forms.to_text(overview.read_task(folder).model_dump(mode="json", exclude_unset=True))


@router.post("/new/form")
async def from_form(request: Request, site: Here) -> HTMLResponse:
    """The form has changed: its text and plan."""
    posted = await request.form(max_files=0, max_fields=2000)
    given = {key: [str(value) for value in posted.getlist(key)] for key in posted}
    return await run_in_threadpool(_of_form, request, site, given)


def _of_form(request: Request, site: Site, given: Mapping[str, Sequence[str]]) -> HTMLResponse:
    data, faults = forms.read(given)
    return _page(request, site, forms.to_text(data), data, faults)


@router.post("/new/text")
def from_text(request: Request, site: Here, text: Text = "") -> HTMLResponse:
    """The text has changed: its form and plan."""
    return _page(request, site, text.replace("\r\n", "\n"))


@router.post("/new/upload")
def upload(request: Request, site: Here, file: Annotated[UploadFile, File()]) -> HTMLResponse:
    content = file.file.read(MAX_BYTES + 1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _page(request, site, "", faults=[Fault(place="", message="this is not a text file in UTF-8")])
    return _page(request, site, text)


@router.post("/new/download")
def download(text: Text = "") -> Response:
    headers = {"Content-Disposition": "attachment; filename=task.yaml"}
    return Response(text, headers=headers, media_type="application/yaml")


@router.post("/new/start")
def start(
    request: Request,
    site: Here,
    text: Text = "",
    name: Annotated[str, Form(max_length=200)] = "",
    where: Annotated[str, Form(max_length=20)] = "here",
    address: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    """Begin the experiment, or show what keeps it from it."""
    text = text.replace("\r\n", "\n")
    draft = drafts.check(text)
    if draft.task is None:
        return _page(request, site, text, code=422)
    chosen = name.strip() or new_name(draft.task.task_name, site.settings.storage)
    try:
        if where == "ray":
            return page(request, "submitted.html", name=chosen, job=_submitted(site, draft, chosen, address.strip()))
        site.launcher.start(chosen, text)
    except SpecError as error:
        faults = [Fault.of(each) for each in error.problems]
        return _page(request, site, text, start_faults=faults, name=name, where=where, address=address, code=422)
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
    """Models and runtimes to choose from, asked of the cluster."""
    return page(request, "cluster.html", stock=site.shop.stock())


def _page(
    request: Request,
    site: Site,
    text: str,
    data: Any = None,
    faults: Sequence[Fault] = (),
    *,
    code: int = 200,
    start_faults: Sequence[Fault] = (),
    **kept: str,
) -> HTMLResponse:
    draft = drafts.check(text)
    if data is None:
        data = _data(text)
    said = {fault.place for fault in faults}
    found = [*faults, *(fault for fault in draft.faults if fault.place not in said)]
    return page(
        request,
        "new.html",
        code,
        form=forms.make(data, found),
        text=text,
        faults=found,
        plan=draft.plan if not found else None,
        start_faults=start_faults,
        starts=STARTS,
        start=kept.get("start", ""),
        name=kept.get("name", ""),
        where=kept.get("where", "here"),
        address=kept.get("address", "") or site.settings.ray_address or "",
        storage=site.settings.storage.location(),
    )


def _data(text: str) -> Any:
    try:
        return taskfile.parse(text, drafts.SOURCE).data
    except SpecError:
        return {}
