"""The launcher of llama.cpp's server: llama-server's flags become llama.cpp's parameters."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raytune_autotuner.engines import llamacpp_server
from raytune_autotuner.engines.engine import load_engine
from raytune_autotuner.engines.llamacpp_server import main, parser, settings

llama = pytest.importorskip("xllamacpp")


def params(*argv: str) -> Any:
    return settings(parser().parse_args(["--model", "m.gguf", *argv]), llama)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back the signal handlers that main changes."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("argv", "attribute", "value"),
    [
        ("-c 4096", "n_ctx", 4096),
        ("--parallel 8", "n_parallel", 8),
        ("-b 64 -ub 32", "n_ubatch", 32),
        ("--slot-prompt-similarity 0.5", "slot_prompt_similarity", 0.5),
        ("--cont-batching", "cont_batching", True),
        ("-nocb", "cont_batching", False),
        ("--cont-batching --no-cont-batching", "cont_batching", False),
        ("--no-cache-prompt --cache-ram 0", "cache_prompt", False),
        ("--kv-unified", "kv_unified", True),
        ("--no-repack", "no_extra_bufts", True),
        ("--repack", "no_extra_bufts", False),
        ("--metrics", "endpoint_metrics", True),
        ("-fa off", "flash_attn_type", llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED),
        ("-ctk q8_0", "cache_type_k", llama.ggml_type.GGML_TYPE_Q8_0),
        ("--cache-type-v bf16", "cache_type_v", llama.ggml_type.GGML_TYPE_BF16),
        ("--load-mode none", "load_mode", llama.llama_load_mode.LLAMA_LOAD_MODE_NONE),
        ("--numa isolate", "numa", llama.ggml_numa_strategy.GGML_NUMA_STRATEGY_ISOLATE),
        ("--alias gemma", "model_alias", {"gemma"}),
        ("--api-key secret", "api_keys", ["secret"]),
        ("", "hostnames", ["127.0.0.1"]),
        ("", "verbosity", llamacpp_server.QUIET),
        ("", "fit_params", False),
        ("--fit on", "fit_params", True),
        ("", "n_batch", 2048),
    ],
)
def test_flags_become_parameters(argv: str, attribute: str, value: object) -> None:
    """Each flag sets what llama-server would; what is not given keeps llama.cpp's default."""
    assert getattr(params(*argv.split()), attribute) == value


def test_threads_of_prompt_processing_follow_those_of_decoding() -> None:
    """As in llama-server, one number serves for both, unless the other is given."""
    assert params("-t", "3").cpuparams_batch.n_threads == 3
    assert params("-t", "3", "-tb", "5").cpuparams_batch.n_threads == 5
    assert params("-t", "3").cpuparams.n_threads == 3


def test_nested_parameters(tmp_path: Path) -> None:
    """Model path, polling, priority and the template's text."""
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    given = params("--poll", "0", "--prio", "2", "--chat-template-file", str(template))
    assert given.model.path == "m.gguf"
    assert given.cpuparams.poll == 0
    assert given.cpuparams.priority == llama.ggml_sched_priority.GGML_SCHED_PRIO_HIGH
    assert given.chat_template == "{{ messages }}"


def test_every_flag_of_the_engine_file_is_known() -> None:
    """What the engine file offers, the launcher takes."""
    known = {flag for action in parser()._actions for flag in action.option_strings}
    engine = load_engine("llamacpp")
    offered = {
        flag for parameter in engine.parameters.values() for flag in (parameter.flag, parameter.off_flag) if flag
    }
    assert offered | {fixed.flag for fixed in engine.fixed} <= known


@pytest.mark.parametrize("argv", ["--no-such-flag 1", "--thread 2", "-t two", "--flash-attn maybe"])
def test_bad_flag_ends_with_exit_code_two(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown, shortened and wrong flags are refused with argparse's message."""
    with pytest.raises(SystemExit) as ended:
        main(["--model", "m.gguf", *argv.split()])
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_missing_model_ends_with_exit_code_one(
    tmp_path: Path, handlers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that cannot start says so and ends."""
    assert main(["--model", str(tmp_path / "none.gguf"), "--port", "0"]) == 1
    assert "error:" in capsys.readouterr().err


def test_missing_package_says_how_to_get_it(
    handlers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the wheel it names the extra."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert main(["--model", "m.gguf"]) == 3
    assert "raytune-autotuner[local]" in capsys.readouterr().err


def test_server_runs_until_a_signal(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits, and SIGTERM ends it at once, also inside native code."""
    started = []

    class Server:
        listening_address = "http://127.0.0.1:1"

        def __init__(self, given: Any) -> None:
            started.append(given.model.path)

    monkeypatch.setattr(llama, "Server", Server)
    monkeypatch.setattr(signal, "pause", lambda: started.append("waiting"))
    assert main(["--model", "m.gguf"]) == 0
    assert started == ["m.gguf", "waiting"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_binary_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLAMA_SERVER is run instead, with the same arguments, whatever they are."""

    def execvp(file: str, argv: list[str]) -> None:
        raise SystemExit(" ".join([file, *argv]))

    monkeypatch.setenv("LLAMA_SERVER", "/opt/llama-server")
    monkeypatch.setattr("os.execvp", execvp)
    with pytest.raises(SystemExit, match="/opt/llama-server /opt/llama-server --new-flag 1"):
        main(["--new-flag", "1"])
