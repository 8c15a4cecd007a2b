"""Models on this machine: paths, packages, tokenizers, chat templates."""

from __future__ import annotations

import json
import struct
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer

from raytune_autotuner import resources
from raytune_autotuner.engines import gguf_tokenizer, localmodel
from raytune_autotuner.engines.gguf_tokenizer import GgufError, read_metadata
from raytune_autotuner.engines.localmodel import chat_template_file, model_path, tokenizer_for
from raytune_autotuner.errors import EnvironmentFault
from raytune_autotuner.task.spec import ModelSpec

SPACE = "\u2581"
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
TOKENS += ["a", "b", "c", SPACE, "ab", "abc", f"{SPACE}ab", "  ", "<mark>"]
TYPES = [3, 3, 3, 2, *(6 for _ in range(256)), *(1 for _ in range(8)), 4]
METADATA: dict[str, Any] = {
    "general.architecture": "tiny",
    "tiny.context_length": 512,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.scores": [0.5 for _ in TOKENS],
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 3,
    "tokenizer.ggml.add_bos_token": True,
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(given: Any) -> bytes:
    """A GGUF value with its type in front."""
    match given:
        case bool():
            return struct.pack("<I?", 7, given)
        case int():
            return struct.pack("<II", 4, given)
        case str():
            return struct.pack("<I", 8) + text(given)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(given)) + b"".join(map(text, given))
        case [float(), *_]:
            return struct.pack(f"<IIQ{len(given)}f", 9, 6, len(given), *given)
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(given)}i", 9, 5, len(given), *given)
    raise AssertionError(given)


def gguf(path: Path, metadata: dict[str, Any], version: int = 3) -> Path:
    entries = b"".join(text(key) + value(given) for key, given in metadata.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, len(metadata)) + entries)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAYTUNE_AUTOTUNER_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return gguf(tmp_path / "tiny.gguf", METADATA)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A model package whose ``assemble`` counts its calls."""
    module = ModuleType("tiny_gguf")
    module.calls = 0  # type: ignore[attr-defined]

    def assemble(path: Path) -> None:
        module.calls += 1  # type: ignore[attr-defined]
        path.write_text("weights")

    module.MODEL_NAME, module.assemble = "tiny.gguf", assemble  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_gguf", module)
    return module


def spec(path: str | None) -> ModelSpec:
    return ModelSpec(name="m", path=path)


def test_path_of_a_file(model: Path) -> None:
    """A file or folder is taken as it is."""
    assert model_path(spec(str(model))) == model
    assert model_path(spec(str(model.parent))) == model.parent


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "say where"),
        ("/no/such/model", "/no/such/model"),
        ("package:no_such_package", "pip install"),
        ("package:..", "pip install"),
    ],
)
def test_missing_model_says_what_to_do(path: str | None, message: str) -> None:
    """What is missing is named, with the cure."""
    with pytest.raises(EnvironmentFault, match=message):
        model_path(spec(path))


def test_package_is_put_together_once(package: ModuleType, cache: Path) -> None:
    """Several at the same time make it once; nothing but the model and its lock stays in the cache."""
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(model_path(spec("package:tiny_gguf")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {cache / "models" / "tiny.gguf"}
    assert package.calls == 1
    assert sorted(path.name for path in (cache / "models").iterdir()) == [".tiny.gguf.lock", "tiny.gguf"]


def test_package_that_is_damaged(package: ModuleType, cache: Path) -> None:
    """A package that cannot be put together leaves nothing behind."""

    def assemble(path: Path) -> None:
        path.write_text("half")
        raise ValueError("wrong sha256")

    package.assemble = assemble  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentFault, match="wrong sha256"):
        model_path(spec("package:tiny_gguf"))
    assert [path.name for path in (cache / "models").iterdir()] == [".tiny.gguf.lock"]


def test_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable the cache is in the user's home."""
    monkeypatch.delenv("RAYTUNE_AUTOTUNER_CACHE")
    assert localmodel.cache() == Path.home() / ".cache" / "raytune-autotuner"


def test_folder_is_its_own_tokenizer(tmp_path: Path) -> None:
    """A Hugging Face folder carries its tokenizer."""
    assert tokenizer_for(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("given", "pieces"),
    [
        ("abc", ["<bos>", "abc"]),
        ("ab ab", ["<bos>", "ab", f"{SPACE}ab"]),
        ("a  b", ["<bos>", "a", SPACE * 2, "b"]),
        ("<eos>a<mark>", ["<bos>", "<eos>", "a", "<mark>"]),
        ("é", ["<bos>", "<0xC3>", "<0xA9>"]),
    ],
)
def test_tokenizer_splits_text(model: Path, given: str, pieces: list[str]) -> None:
    """Longest known pieces, marks and control tokens whole, runs of spaces together, the rest as bytes."""
    tokenizer = Tokenizer.from_file(str(tokenizer_for(model) / "tokenizer.json"))
    assert tokenizer.encode(given).tokens == pieces


def test_tokenizer_restores_text(model: Path) -> None:
    """What is encoded is decoded to the same."""
    tokenizer = Tokenizer.from_file(str(tokenizer_for(model) / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("ab  é c").ids) == "ab  é c"


def test_tokenizer_configuration(model: Path) -> None:
    """Special tokens and the context length are told, and a chat template of Gemma's where the file has none."""
    config = json.loads((tokenizer_for(model) / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == ("<bos>", "<eos>", "<pad>")
    assert config["model_max_length"] == 512
    assert config["chat_template"] == chat_template_file("gemma").read_text()


def test_own_chat_template_and_no_beginning(tmp_path: Path) -> None:
    """A template in the file wins, and nothing is put in front when the file says so."""
    metadata = METADATA | {"tokenizer.chat_template": "own", "tokenizer.ggml.add_bos_token": False}
    folder = tokenizer_for(gguf(tmp_path / "own.gguf", metadata))
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == "own"
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("abc").tokens == ["abc"]


def test_tokenizer_is_made_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call takes it from the cache; another file has another one."""
    first = tokenizer_for(model)
    other = tokenizer_for(gguf(model.with_name("other.gguf"), METADATA))
    assert other != first
    monkeypatch.setattr(gguf_tokenizer, "write", None)
    assert tokenizer_for(model) == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no whole GGUF header"),
        (b"PK\x03\x04 something else", "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is too old"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5), "no whole GGUF header"),
    ],
)
def test_no_gguf(tmp_path: Path, content: bytes, message: str) -> None:
    """A file of another kind, or one that is cut off, is said to be so."""
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=message):
        read_metadata(path)
    with pytest.raises(EnvironmentFault, match=r"benchmark\.model_tokenizer"):
        tokenizer_for(path)


def test_other_kind_of_tokenizer(tmp_path: Path) -> None:
    """A vocabulary that is not SentencePiece's is refused, with the way out."""
    path = gguf(tmp_path / "bpe.gguf", METADATA | {"tokenizer.ggml.model": "gpt2"})
    with pytest.raises(EnvironmentFault, match=r"gpt2.*benchmark\.model_tokenizer"):
        tokenizer_for(path)


def test_chat_template_by_name_or_file(tmp_path: Path) -> None:
    """A shipped one by its name, any file by its path."""
    assert chat_template_file("gemma") == resources.templates() / "chat" / "gemma.jinja"
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages }}")
    assert chat_template_file(str(own)) == own


@pytest.mark.parametrize("name", ["gemna", "../engines/llamacpp"])
def test_unknown_chat_template(name: str) -> None:
    """Those that are shipped are listed."""
    with pytest.raises(EnvironmentFault, match=r"shipped: .*gemma"):
        chat_template_file(name)


def test_templates_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wheel the templates lie inside the package."""
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "resources.py"))
    assert resources.templates() == tmp_path.parent / "templates"
    (tmp_path / "templates").mkdir()
    assert resources.templates() == tmp_path / "templates"
