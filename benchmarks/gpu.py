"""A Llama-3-8B-shaped model with random weights on an accelerator: seconds per edit in both modes, and where they go."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import requests, steps
from benchmarks.settings import Found, Settings, median
from benchmarks.stopwatch import peak_mib
from lit_edit.targets import TargetOptions

MODES = {"exact": torch.float32, "fast": torch.bfloat16}
"""What the model runs in; changes, masters and targets are float32 and solves float64 in both."""


def device_of(settings: Settings) -> torch.device:
    """The accelerator; a quick run makes do without.

    Raises:
        SystemExit: if there is none.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if settings.quick:
        return torch.device("cpu")
    raise SystemExit("the gpu suite needs a CUDA device; --quick runs it with a tiny model on the CPU")


def config_of(settings: Settings, device: torch.device, dtype: torch.dtype) -> Any:
    """The published shape, with fewer blocks where memory does not hold all of them."""
    if settings.quick:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
        return AutoConfig.for_model("llama", vocab_size=2000, num_hidden_layers=10, **sizes)
    blocks = 32
    if device.type == "cuda":
        width = torch.finfo(dtype).bits // 8
        free = torch.cuda.mem_get_info(device)[0]
        # Both embeddings; per edited layer masters, spectra and factors; room for activations.
        rest = 2 * 128256 * 4096 * width + 5 * (4 * 14336 * 4096 * 4 + 14336**2 * 20) + 12 * 2**30
        blocks = max(10, min(32, int((free - rest) // (218_112_000 * width))))
    return AutoConfig.for_model(
        "llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=blocks,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )


def model_of(config: Any, device: torch.device, dtype: torch.dtype, seed: int) -> nn.Module:
    """Random weights, made where they are used."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.to(device).eval().requires_grad_(False)


def batch(settings: Settings, mode: str) -> Found:
    """Batches of 100 on layers 4-8, 25 steps, in one mode: the first one warms up, the last one is profiled."""
    device, dtype = device_of(settings), MODES[mode]
    config = config_of(settings, device, dtype)
    size = settings.size(100, 4)
    options = TargetOptions(steps=settings.size(25, 3), lr=0.1, stop_loss=0.0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    watch = settings.watch()
    with watch.part("model"):
        model = model_of(config, device, dtype, settings.seed)
    with watch.part("prepare"):
        ground = steps.Ground.prepare(model, range(4, 9), options, 15000.0, settings.seed)
        editor, guard = ground.editor(), ground.guard()
    drawn = requests.drawn(size, config.vocab_size, options.contexts, settings.seed)
    seconds = []
    for _ in range(settings.size(3, 2)):
        one, _, _ = steps.ours(ground, drawn, editor, guard, settings.clock)
        seconds.append(dict(one.seconds))
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=kinds) as seen:
        steps.ours(ground, drawn, editor, guard, settings.clock)
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    each = [sum(one.values()) / size for one in seconds[1:]]
    return {
        "ratios": {},
        "mode": mode,
        "dtype": str(dtype).removeprefix("torch."),
        "blocks": config.num_hidden_layers,
        "published_blocks": 32,
        "batch": size,
        "seconds_per_edit": median(each),
        "seconds": seconds[-1],
        "once_seconds": dict(watch.seconds),
        "peak_mib": peak_mib(device),
        "profile": _table(seen, order),
    }


def _table(seen: Any, order: str) -> str:
    return str(seen.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=48))
