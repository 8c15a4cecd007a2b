"""What of a task has to travel so that it runs on another machine: the task, and the files that it names.

The task is written out whole, overrides applied, with each path that it names changed to where the file lies in the
folder that travels. Weights and credentials never travel.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raytune_autotuner import resources
from raytune_autotuner.engines.localmodel import chat_template_file
from raytune_autotuner.errors import SpecError
from raytune_autotuner.task.spec import Task
from raytune_autotuner.task.taskfile import Steps, at, dotted

TASK_FILE = "task.json"
LIMIT_BYTES = 100 * 1024**2
"""Of one upload to a Ray head, whose archive is not compressed (DASHBOARD_CLIENT_MAX_SIZE of Ray)."""
OVERHEAD_BYTES = 1024
"""Of a file in that archive, at most."""
WEIGHTS = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".ckpt"})
SHOWN_FILES = 5

Files = Mapping[str, Path | str]
"""By the path in the folder that travels: a file here, or a text."""


@dataclass(frozen=True)
class Parcel:
    """A task that can be run wherever its folder is the working folder."""

    files: Files
    notes: tuple[str, ...] = ()
    """What the task needs that does not travel, in words."""

    @property
    def size(self) -> int:
        return sum(map(_size, self.files.values()))

    def write(self, folder: Path) -> None:
        for name, content in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                target.write_text(content, encoding="utf-8")
            else:
                shutil.copyfile(content, target)


def pack(task: Task, shared: Sequence[Path] = ()) -> Parcel:
    """The parcel of a checked task; what lies in a shared folder is at the same place on the other machine.

    Raises:
        EnvironmentFault: a chat template is not there.
        SpecError: it is larger than a Ray head takes.
    """
    data = task.model_dump(mode="json", exclude_unset=True)
    files: dict[str, Path | str] = {}
    for steps, ship in SHIPPED.items():
        value = at(data, steps)
        if value is None or any(_resolved(value).is_relative_to(_resolved(str(folder))) for folder in shared):
            continue
        name, content = ship(f"files/{dotted(steps)}", value)
        files.update(content)
        at(data, steps[:-1])[steps[-1]] = name
    files[TASK_FILE] = json.dumps(data, indent=1)
    parcel = Parcel(files, tuple(_left_behind(task, files)))
    check_size(parcel)
    return parcel


def pack_package() -> Parcel:
    """This very package, with its templates, as it would be installed."""
    package = Path(__file__).parent
    roots = {package.name: package, f"{package.name}/templates": resources.templates()}
    parcel = Parcel({f"{at}/{name}": file for at, root in roots.items() for name, file in _tree(root).items()})
    check_size(parcel)
    return parcel


def check_size(parcel: Parcel, limit: int = LIMIT_BYTES) -> None:
    """
    Raises:
        SpecError: names the biggest files and the cure.
    """
    if parcel.size <= limit:
        return
    biggest = sorted(parcel.files.items(), key=lambda item: -_size(item[1]))[:SHOWN_FILES]
    named = ", ".join(
        f"{content if isinstance(content, Path) else name} ({_mib(_size(content))})" for name, content in biggest
    )
    raise SpecError.single(
        "",
        f"what it names makes {_mib(parcel.size)}, and a Ray head takes {_mib(limit)}; the biggest: {named}. Put them "
        "on a file system that the cluster has at the same path and name that with --shared, or name a hub's dataset "
        "or tokenizer",
        "submit",
    )


Shipped = tuple[str, Files]
"""The path to write into the task, and what has to lie there."""


def _file(place: str, value: str) -> Shipped:
    path = _resolved(value)
    return (f"{place}/{path.name}", {f"{place}/{path.name}": path}) if path.is_file() else (value, {})


def _engine(place: str, value: str) -> Shipped:
    return _file(place, value) if Path(value).suffix in (".yaml", ".yml") else (value, {})


def _chat_template(place: str, value: str) -> Shipped:
    path = chat_template_file(value)
    return (value, {}) if path.is_relative_to(resources.templates()) else _file(place, str(path))


def _tokenizer(place: str, value: str) -> Shipped:
    """A folder without the weights that may lie beside; a hub's id stays as it is."""
    folder = _resolved(value)
    if not folder.is_dir():
        return value, {}
    files = {name: file for name, file in _tree(folder).items() if file.suffix not in WEIGHTS}
    return place, {f"{place}/{name}": file for name, file in files.items()}


def _dataset_config(place: str, value: str) -> Shipped:
    """genai-bench's file, with the file that it names in its turn."""
    config = json.loads(_resolved(value).read_text(encoding="utf-8"))
    source = at(config, ("source",))
    files: dict[str, Path | str] = {}
    if isinstance(source, dict) and source.get("type") == "file" and isinstance(source.get("path"), str):
        source["path"], content = _file(f"{place}/source", source["path"])
        files.update(content)
    return f"{place}/config.json", {**files, f"{place}/config.json": json.dumps(config, indent=1)}


SHIPPED: Mapping[Steps, Callable[[str, str], Shipped]] = {
    ("engine",): _engine,
    ("model", "chat_template"): _chat_template,
    ("ome", "template"): _file,
    ("benchmark", "dataset", "path"): _file,
    ("benchmark", "dataset", "config"): _dataset_config,
    ("benchmark", "model_tokenizer"): _tokenizer,
}
"""The fields of a task that name a file or a folder."""


def _left_behind(task: Task, files: Files) -> Iterator[str]:
    if name := task.benchmark.api_key_env:
        yield f"benchmark.api_key_env: {name} is not shipped; it has to be in the environment of the cluster's nodes"
    if task.ome.kubeconfig:
        yield f"ome.kubeconfig: {task.ome.kubeconfig} is not shipped; it has to be at that place on the cluster's nodes"
    if task.model.path and not task.model.path.startswith("package:"):
        yield f"model.path: {task.model.path} is not shipped; it has to be at that place on the cluster's nodes"


def _tree(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path in it, without hidden ones and caches."""
    found = ((file.relative_to(folder), file) for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(name): file for name, file in found if not any(_omitted(part) for part in name.parts)}


def _omitted(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()


def _size(content: Path | str) -> int:
    return OVERHEAD_BYTES + (len(content.encode()) if isinstance(content, str) else content.stat().st_size)


def _mib(size: int) -> str:
    return f"{size / 1024**2:.1f} MiB"
