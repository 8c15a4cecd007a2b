"""Models that lie on this machine: where they are, and the tokenizer and chat template that go with them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from raytune_autotuner import resources
from raytune_autotuner.engines import gguf_tokenizer
from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.task.spec import ModelSpec

PACKAGE = "package:"
INSTALL = "pip install 'raytune-autotuner[local]'"


def cache() -> Path:
    """The folder for what is made once and used by every run; RAYTUNE_AUTOTUNER_CACHE moves it."""
    named = os.environ.get("RAYTUNE_AUTOTUNER_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "raytune-autotuner"


def model_path(model: ModelSpec) -> Path:
    """The model's file or folder; one that comes as a Python package is put together at the first call.

    Raises:
        EnvironmentFault: it is not there.
    """
    if model.path is None:
        raise EnvironmentFault("model.path: say where the model is: a file, a folder, or package:NAME")
    if model.path.startswith(PACKAGE):
        return _from_package(model.path.removeprefix(PACKAGE))
    path = resolved(model.path)
    if not path.exists():
        raise EnvironmentFault(f"model.path: {path} does not exist")
    return path


def resolved(path: str) -> Path:
    """Where a path of the task leads from here: from the folder that the command is given in, not the task file's."""
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError:  # there is no such user, or links lead in a circle
        return Path(path).absolute()


def _from_package(name: str) -> Path:
    """The weights that a package ships in parts; its ``assemble(path)`` joins and checks them."""
    try:
        package = import_module(name)
        target = cache() / "models" / str(package.MODEL_NAME)
        assemble: Callable[[Path], Path] = package.assemble
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise EnvironmentFault(f"model.path: no model package {name!r} is installed ({error}); {INSTALL}") from error

    def make(path: Path) -> None:
        try:
            assemble(path)
        except (ImportError, OSError, ValueError) as error:
            raise EnvironmentFault(f"model.path: {name} is damaged or incomplete ({error}); {INSTALL}") from error

    return _once(target, make)


def tokenizer_for(path: Path) -> Path:
    """A folder that Hugging Face's tokenizers load: a model folder is its own, a GGUF file's is made once.

    Raises:
        EnvironmentFault: the file is no GGUF, or its tokenizer is of a kind that is not supported.
    """
    if path.is_dir():
        return path
    stat = path.stat()
    name = f"{path.stem}-{stat.st_size}-{stat.st_mtime_ns}-{gguf_tokenizer.VERSION}"

    def make(folder: Path) -> None:
        try:
            gguf_tokenizer.write(path, folder, chat_template_file("gemma").read_text(encoding="utf-8"))
        except (gguf_tokenizer.GgufError, ImportError) as error:
            fault = f"{path}: no tokenizer can be made of it ({error}); name one in benchmark.model_tokenizer"
            raise EnvironmentFault(fault) from error

    return _once(cache() / "tokenizers" / name, make)


def chat_template_file(name_or_path: str) -> Path:
    """A shipped chat template by name, or the user's file.

    Raises:
        EnvironmentFault: there is none such (lists those that are shipped).
    """
    shipped = {file.stem: file for file in (resources.templates() / "chat").glob("*.jinja")}
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = resolved(name_or_path)
    if not (os.access(path, os.R_OK) and path.is_file()):  # the first does not raise where a name is too long
        names = ", ".join(sorted(shipped))
        raise EnvironmentFault(f"model.chat_template: {name_or_path!r} is no file and not among those shipped: {names}")
    return path


def _once(target: Path, make: Callable[[Path], None]) -> Path:
    """The target, made by ``make`` under another name and then renamed; one process makes it, others wait."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
                    made = Path(scratch) / target.name
                    make(made)
                    shutil.move(made, target)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
