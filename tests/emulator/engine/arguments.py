"""The command lines of SGLang's and vLLM's servers, with argparse's own messages and exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_autotuner.engines.engine import Engine, EngineParameter, load_engine
from tests.emulator.engine.settings import Values

PROGRAMS = {"sglang": "launch_server.py", "vllm": "api_server.py"}
WORDS = {
    "sglang": [
        "--tokenizer-path",
        "--tokenizer-mode",
        "--load-format",
        "--device",
        "--log-level",
        "--revision",
        "--api-key",
        "--random-seed",
        "--watchdog-timeout",
        "--dist-init-addr",
        "--nnodes",
        "--node-rank",
        "--tool-call-parser",
        "--reasoning-parser",
        "--disaggregation-mode",
        "--disaggregation-ib-device",
        "--disaggregation-bootstrap-port",
        "--disaggregation-transfer-backend",
        "--json-model-override-args",
        "--chat-template",
    ],
    "vllm": [
        "--tokenizer",
        "--load-format",
        "--revision",
        "--api-key",
        "--seed",
        "--chat-template",
        "--hf-overrides",
        "--root-path",
    ],
}
"""Further options with a value that change nothing here."""
SWITCHES = {
    "sglang": [
        "--trust-remote-code",
        "--log-requests",
        "--enable-metrics",
        "--skip-server-warmup",
        "--enable-cache-report",
    ],
    "vllm": ["--trust-remote-code", "--disable-log-stats", "--enable-log-requests", "--disable-log-requests"],
}


@dataclass(frozen=True)
class CommandLine:
    """What a command line says."""

    engine: Engine
    values: Values
    """Parameters by the engine file's names; ``None`` where nothing was said."""
    model_path: str
    served_name: str
    host: str
    port: int
    api_key: str | None
    metrics: bool
    disaggregation: str


def parse(engine_name: str, words: Sequence[str]) -> CommandLine:
    """Raises SystemExit with code 2, after argparse's message on standard error, when a word is wrong."""
    engine = load_engine(engine_name)
    if engine_name == "vllm":  # its parser takes underscores for dashes
        words = [_dashed(word) for word in words]
    said = vars(_parser(engine).parse_args(list(words)))
    model_path = said["model_path"] or said["model"] or ""
    return CommandLine(
        engine=engine,
        values={name: said[f"parameter {name}"] for name in engine.parameters},
        model_path=model_path,
        served_name=said["served_model_name"] or model_path,
        host=said["host"],
        port=said["port"],
        api_key=said["api_key"],
        metrics=engine_name != "sglang" or said["enable_metrics"],
        disaggregation=said.get("disaggregation_mode") or "null",
    )


def _dashed(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word.startswith("--") else word


def _parser(engine: Engine) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAMS[engine.name])
    paths = ["--model-path", "--model"] if engine.name == "sglang" else ["--model"]
    parser.add_argument(*paths, dest="model_path", required=engine.name == "sglang")
    parser.set_defaults(model=None)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="127.0.0.1" if engine.name == "sglang" else "0.0.0.0")
    parser.add_argument("--port", type=int, default=30000 if engine.name == "sglang" else 8000)
    for flag in WORDS[engine.name]:
        parser.add_argument(flag)
    for flag in SWITCHES[engine.name]:
        parser.add_argument(flag, action="store_true")
    for name, parameter in engine.parameters.items():
        _add(parser, f"parameter {name}", parameter)
    return parser


def _add(parser: argparse.ArgumentParser, dest: str, parameter: EngineParameter) -> None:
    flags = [parameter.flag, *(alias for alias in parameter.aliases if alias.startswith("-"))]
    options: dict[str, Any] = {"dest": dest, "default": None}
    if parameter.type == "bool":
        parser.add_argument(*flags, action="store_true", **options)
        if parameter.off_flag:
            parser.add_argument(parameter.off_flag, action="store_false", **options)
        return
    if parameter.type == "choice":
        kind = int if all(isinstance(value, int) for value in parameter.values) else str
        # Numbers are only what is sensible, so that any is taken.
        options |= {"type": kind} if kind is int else {"choices": [str(value) for value in parameter.values]}
    else:
        options["type"] = {"int": int, "float": float, "str": str}[parameter.type]
    parser.add_argument(*flags, metavar=parameter.flag.lstrip("-").replace("-", "_").upper(), **options)
