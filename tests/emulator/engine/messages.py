"""What the engines print, as far as anything reads it."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import NoReturn

from tests.emulator.engine.memory import EngineFailure, Plan
from tests.emulator.engine.profile import GIB


def log(text: str) -> None:
    """One line with SGLang's time stamp."""
    print(time.strftime("[%Y-%m-%d %H:%M:%S]"), text, flush=True)  # noqa: T201


def weights_loaded(plan: Plan, architecture: str) -> None:
    log(f"Load weight end. type={architecture}, mem usage={plan.weight_bytes / GIB:.2f} GB.")


def allocated(plan: Plan) -> None:
    size = plan.capacity_tokens * plan.kv_token_bytes / 2 / GIB
    log(f"KV Cache is allocated. #tokens: {plan.capacity_tokens}, K size: {size:.2f} GB, V size: {size:.2f} GB")
    log(f"Memory pool end. avail mem={plan.headroom_bytes / GIB:.2f} GB")
    chosen = plan.settings
    log(
        f"max_total_num_tokens={plan.capacity_tokens}, chunked_prefill_size={chosen.step_tokens},"
        f" max_running_requests={chosen.max_running}, context_len={chosen.context_length},"
        f" available_gpu_mem={plan.headroom_bytes / GIB:.2f} GB"
    )


def fail(engine: str, failure: EngineFailure, running: bool) -> NoReturn:
    """End as the engine does: SGLang kills its whole process tree, itself included; vLLM exits with 1."""
    where = "Scheduler hit an exception: " if engine == "sglang" else "EngineCore encountered a fatal error.\n"
    lines = [
        where + "Traceback (most recent call last):",
        '  File "/opt/engine/scheduler.py", line 2713, in event_loop' if running else '  File "/opt/engine/run.py"',
        failure.message,
        "",
    ]
    log("\n".join(lines))
    if engine == "sglang":
        log("Received sigquit from a child process. It usually means the child failed.")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    log("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    sys.stderr.flush()
    os._exit(1)
