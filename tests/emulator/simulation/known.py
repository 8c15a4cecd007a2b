"""What one knows of a study's model and GPUs beforehand: a model's config and data sheets, no cost and no effect."""

from __future__ import annotations

from raytune_autotuner.foresight.facts import GIB, Facts, of_product
from tests.emulator.simulation.study import World

EXPERTS = {"Mixtral-8x7B": (2, 8), "Qwen3-30B": (8, 128), "Qwen3-235B": (8, 128), "GLM-4.5-Air": (8, 128)}
"""By the model's name, as its config says: those that a token meets, of how many."""


def facts(world: World) -> Facts:
    """By the names of ``foresight.facts``."""
    shape, gpu = world.profile.model, world.profile.gpu
    each, experts = next((counts for name, counts in EXPERTS.items() if name in shape.name), (1, 1))
    return {
        "weights_gib": shape.parameters_b * 1e9 * shape.bytes_per_parameter / GIB,
        "stored_bytes": shape.bytes_per_parameter,
        "active_share": each / experts,
        "layers": shape.layers,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "gpu_gib": gpu.memory_gib,
        **of_product(gpu.name),
    }
