"""How long one step of an engine takes: a roofline over weights, KV cache, products, links and the host."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.emulator.engine.memory import Plan
from tests.emulator.engine.profile import Profile, holds


@dataclass(frozen=True)
class Costs:
    """Time of a step, from constants computed once for a configuration (all in seconds)."""

    weights_s: float
    """Reading the weights once."""
    product_s: float
    """Matrix products of one token at full efficiency."""
    half_tokens: float
    score_s: float
    """Prefill attention of one token with one token before it."""
    read_s: float
    """Reading one token of the KV cache."""
    link_s: float
    """All-reduces of a step, whatever its size."""
    link_token_s: float
    host_s: float
    host_request_s: float
    graph_s: float
    eager_s: float
    graph_batch: int
    overlap: bool
    stages: int
    draft_tokens: int
    draft: float
    tokens_per_step: float
    """More than 1 with speculative decoding."""
    prefill: float
    decode: float
    round_steps: int

    def step_s(self, prompt_tokens: int, prompt_scores: float, requests: int, context: int) -> float:
        """One step over prompt chunks and ``requests`` decodes with ``context`` tokens in all.

        ``prompt_scores`` is the sum over prompt tokens of the tokens before them.
        """
        prefill_s = self._linear_s(prompt_tokens) + prompt_scores * self.score_s if prompt_tokens else 0.0
        decode_s = 0.0
        if requests:
            checked = self.draft_tokens + 1
            # A mixed step reads the weights once, with its prefill.
            linear = requests * checked * self.product_s if prompt_tokens else self._decode_linear_s(requests * checked)
            decode_s = (linear + context * self.read_s) * (1 + self.draft * self.draft_tokens)
        tokens = prompt_tokens + requests
        gpu = prefill_s * self.prefill + decode_s * self.decode + self.link_s + tokens * self.link_token_s
        gpu += self.graph_s if not prompt_tokens and requests <= self.graph_batch else self.eager_s
        rounds = 1 if prompt_tokens else self.round_steps
        host = (self.host_s + self.host_request_s * (requests + (1 if prompt_tokens else 0))) / rounds
        return max(gpu, host) if self.overlap else gpu + host

    def _linear_s(self, tokens: int) -> float:
        return _either(self.weights_s, (tokens + self.half_tokens) * self.product_s)

    def _decode_linear_s(self, tokens: int) -> float:
        # Pipeline stages work on a share of the batch each, and every one reads its own weights for it.
        return _either(self.weights_s, tokens / self.stages * self.product_s)


def _either(a: float, b: float) -> float:
    """About the larger one; near the ridge of the roofline both are felt."""
    return float((a**4 + b**4) ** 0.25)


def costs(profile: Profile, plan: Plan, node: str = "") -> Costs:
    """The costs of a configuration on a node."""
    gpu, model, cost, settings = profile.gpu, profile.model, profile.cost, plan.settings
    tp, bytes_per = settings.tp, settings.weight_bytes
    quantization = profile.quantizations.get(settings.quantization or "")
    speed = gpu.tflops * 1e12 * cost.prefill_efficiency * (quantization.compute if quantization else 1.0)
    bandwidth = gpu.bandwidth_gb_s * 1e9
    active = (model.active_parameters_b or model.parameters_b) * 1e9
    slow = profile.noise.nodes.get(node, 1.0)
    prefill, decode, host = _effects(profile, plan)
    reduces = 2 * model.layers if tp > 1 else 0
    reduce_bytes = 2 * (tp - 1) / tp * model.hidden_size * 2
    hops_s = (settings.pp - 1) * 2e-4
    acceptance, steps = profile.speculation.acceptance, settings.draft_tokens
    return Costs(
        weights_s=slow * active * bytes_per / tp / (bandwidth * cost.decode_efficiency),
        product_s=slow * 2 * active / tp / speed,
        half_tokens=cost.prefill_half_tokens,
        score_s=slow * 4 * model.layers * model.heads * model.head_dim / tp / speed,
        read_s=slow * plan.kv_token_bytes * settings.pp / (bandwidth * cost.attention_efficiency),
        link_s=slow * (reduces * gpu.link_latency_us * 1e-6 + hops_s),
        link_token_s=slow * reduces * reduce_bytes / (gpu.link_gb_s * 1e9),
        host_s=slow * host * cost.host_ms * 1e-3,
        host_request_s=slow * host * cost.host_us_per_request * 1e-6,
        graph_s=slow * cost.graph_launch_ms * 1e-3,
        eager_s=slow * cost.eager_launch_ms * 1e-3 * (0.6 if settings.compiled else 1.0),
        graph_batch=settings.graph_batch,
        overlap=settings.overlap,
        stages=settings.pp,
        draft_tokens=steps,
        draft=profile.speculation.draft,
        tokens_per_step=sum(acceptance**k for k in range(steps + 1)),
        prefill=prefill,
        decode=decode,
        round_steps=settings.steps_per_round,
    )


def _effects(profile: Profile, plan: Plan) -> tuple[float, float, float]:
    found = [effect for effect in profile.effects if holds(effect.condition, plan.settings.values)]
    return (
        math.prod(effect.prefill for effect in found),
        math.prod(effect.decode for effect in found),
        math.prod(effect.host for effect in found),
    )
