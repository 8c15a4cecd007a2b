"""What an engine can hold: GPU memory at the start, and whether it starts at all."""

from __future__ import annotations

from dataclasses import dataclass

from tests.emulator.engine.profile import GIB, Failing, Profile, holds
from tests.emulator.engine.settings import Settings

MIB = 2**20
REPLICATED_ACTIVATION = 0.4
"""Share of the activations that tensor parallelism does not split."""


class EngineFailure(Exception):
    """The engine ends, or hangs; ``message`` is the last line that it prints for this."""

    def __init__(self, message: str, out_of_memory: bool = False, hang: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.out_of_memory = out_of_memory
        self.hang = hang


@dataclass(frozen=True)
class Plan:
    """A start that succeeded, for one of the ``dp`` ranks."""

    settings: Settings
    weight_bytes: float
    """On one GPU."""
    kv_token_bytes: float
    """Of one token, on one GPU."""
    capacity_tokens: int
    headroom_bytes: float
    """Left for a step's activations."""
    load_s: float


def plan(profile: Profile, settings: Settings, gpus: int | None = None) -> Plan:
    """What a start with these settings gives; ``gpus`` are those the process can see.

    Raises:
        EngineFailure: it does not start.
    """
    _check(profile, settings, gpus)
    usable = (profile.gpu.memory_gib - profile.gpu.other_gib) * GIB
    weights = profile.model.parameters_b * 1e9 * settings.weight_bytes / (settings.tp * settings.pp)
    if weights > usable:
        raise EngineFailure(cuda_out_of_memory(weights / profile.model.layers, weights - usable), out_of_memory=True)
    token = kv_token_bytes(profile, settings)
    room = _kv_room(profile, settings, usable, weights)
    capacity = int(room / token)
    wanted = settings.max_total_tokens
    if wanted is not None:
        capacity = min(capacity, wanted)
    if settings.engine == "vllm" and capacity < settings.context_length:
        raise EngineFailure(_too_long(settings, token, capacity), out_of_memory=True)
    graphs = settings.graph_batch * profile.cost.graph_mib_per_request * MIB
    headroom = usable - weights - capacity * token - graphs
    if headroom < 0 or graphs > usable * (1 - settings.memory_fraction) + room - capacity * token:
        raise EngineFailure(_capture_failed(settings, graphs, max(0.0, headroom + graphs)), out_of_memory=True)
    return Plan(settings, weights, token, capacity, headroom, _load_s(profile, settings))


def kv_token_bytes(profile: Profile, settings: Settings) -> float:
    """Bytes of one token's keys and values on one GPU; heads that do not split are held by every GPU."""
    model = profile.model
    heads = max(1.0, model.kv_heads / settings.tp)
    return 2 * model.layers / settings.pp * heads * model.head_dim * settings.kv_bytes


def activation_bytes(profile: Profile, settings: Settings, prompt_tokens: float, requests: float) -> float:
    """What one step needs on one GPU beyond weights and KV cache."""
    split = REPLICATED_ACTIVATION + (1 - REPLICATED_ACTIVATION) / settings.tp
    logits = requests * profile.model.vocabulary * 4 / settings.tp
    return prompt_tokens * profile.cost.activation_mib_per_token * MIB * split + logits


def _check(profile: Profile, settings: Settings, gpus: int | None) -> None:
    wanted = settings.tp * settings.pp * settings.dp
    if gpus is not None and wanted > gpus:
        if settings.engine == "sglang":
            raise EngineFailure("torch.AcceleratorError: CUDA error: invalid device ordinal")
        raise EngineFailure(
            f"ValueError: World size ({wanted}) is larger than the number of available GPUs ({gpus}) in this node."
        )
    heads = profile.model.heads
    if heads % settings.tp and settings.engine == "sglang":
        raise EngineFailure(f"AssertionError: {heads} is not divisible by {settings.tp}")
    if heads % settings.tp:
        raise EngineFailure(
            f"ValueError: Total number of attention heads ({heads}) must be divisible by tensor parallel size"
            f" ({settings.tp})."
        )
    for failing in failures(profile, settings, "start"):
        raise EngineFailure(failing.message, out_of_memory="out of memory" in failing.message, hang=failing.hang)


def failures(profile: Profile, settings: Settings, at: str) -> list[Failing]:
    """The failing regions of the profile in which these settings lie."""
    return [region for region in profile.failures if region.at == at and holds(region.condition, settings.values)]


def _kv_room(profile: Profile, settings: Settings, usable: float, weights: float) -> float:
    if settings.engine == "sglang":
        room = usable * settings.memory_fraction - weights
        if room <= 0:
            raise EngineFailure(
                "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value:"
                f" self.server_args.mem_fraction_static={settings.memory_fraction}",
                out_of_memory=True,
            )
        return room
    # vLLM runs the largest step once and takes what is left.
    peak = activation_bytes(profile, settings, settings.step_tokens, settings.max_running)
    room = usable * settings.memory_fraction - weights - peak
    if room <= 0:
        raise EngineFailure(
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when"
            " initializing the engine.",
            out_of_memory=True,
        )
    return room


def _load_s(profile: Profile, settings: Settings) -> float:
    start = profile.start
    weights = profile.model.parameters_b * profile.model.bytes_per_parameter
    captured = settings.graph_batch // 8 + 4 if settings.graph_batch else 0
    compiling = start.compile_s if settings.compiled else 0.0
    return start.init_s + weights / start.load_gb_s + min(captured, 70) * start.graph_s + compiling


def cuda_out_of_memory(wanted: float, missing: float) -> str:
    """PyTorch's message."""
    free = max(0.0, wanted - missing)
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {wanted / GIB:.2f} GiB. GPU 0 has a total"
        f" capacity of which {free / GIB:.2f} GiB is free."
    )


def _capture_failed(settings: Settings, graphs: float, free: float) -> str:
    said = cuda_out_of_memory(graphs, graphs - min(free, graphs))
    if settings.engine == "sglang":
        return "Exception: Capture cuda graph failed: " + said.partition(": ")[2]
    return said


def _too_long(settings: Settings, token: float, capacity: int) -> str:
    need = settings.context_length * token / GIB
    return (
        f"ValueError: To serve at least one request with the models's max seq len ({settings.context_length}),"
        f" ({need:.2f} GiB KV cache is needed, which is larger than the available KV cache memory"
        f" ({capacity * token / GIB:.2f} GiB)."
    )
