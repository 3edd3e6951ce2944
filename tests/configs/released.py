"""Hyper-parameters as they stand in released files, under the names that they have there.

Copied from the files that the presets name as their sources, not from the presets.
"""

from __future__ import annotations

from typing import Any

Released = dict[str, Any]

_ALPHAEDIT = {"v_weight_decay": 0.5, "clamp_norm_factor": 0.75, "kl_factor": 0.0625}
_EASYEDIT = {
    "layers": [4, 5, 6, 7, 8],
    "clamp_norm_factor": 4,
    "v_num_grad_steps": 25,
    "v_lr": 5e-1,
    "v_weight_decay": 1e-3,
    "kl_factor": 0.0625,
    "mom2_update_weight": 15000,
}
_LLAMA3 = {"layers": [4, 5, 6, 7, 8], "v_num_grad_steps": 25, "v_lr": 1e-1, "mom2_update_weight": 15000, **_ALPHAEDIT}

MEMIT: dict[str, Released] = {
    "gpt2-xl": {
        "layers": [13, 14, 15, 16, 17],
        "v_num_grad_steps": 20,
        "v_lr": 5e-1,
        "mom2_update_weight": 20000,
        **_ALPHAEDIT,
    },
    "gpt-j-6b": {
        "layers": [3, 4, 5, 6, 7, 8],
        "v_num_grad_steps": 25,
        "v_lr": 5e-1,
        "mom2_update_weight": 15000,
        **_ALPHAEDIT,
    },
    "llama3-8b": _LLAMA3,
    "llama3-8b-instruct": _LLAMA3,
    "llama3.2-1b": _EASYEDIT,
    "llama3.2-3b": _EASYEDIT,
    "qwen2.5-7b": _EASYEDIT,
    "mistral-7b": _EASYEDIT,
}
"""MEMIT's file for every model that has one."""

DERIVED = {"qwen3-8b": 36, "phi-3-mini": 32, "gemma-2-2b": 26, "gemma-3-1b": 26, "gemma-3-4b": 34}
"""Number of blocks of the models that have none."""


def _targets(model: str, **others: Any) -> Released:
    """A file of the MEMIT family: targets and layers as in MEMIT's own, the rest of its own."""
    own = {key: value for key, value in MEMIT[model].items() if key != "mom2_update_weight"}
    return {**own, **others}


_ROME = {"clamp_norm_factor": 4, "kl_factor": 0.0625, "context_template_length_params": [[5, 10], [10, 10]]}
_ROME_GPT = {"v_num_grad_steps": 20, "v_lr": 5e-1, "v_weight_decay": 0.5, "mom2_adjustment": True, **_ROME}
_ROME_LLAMA = {"layers": [5], "v_num_grad_steps": 25, "v_lr": 5e-1, "v_weight_decay": 1e-3, "mom2_adjustment": False, **_ROME}
_FT = {"num_steps": 25, "lr": 5e-4, "weight_decay": 0}
_BETA = {"lambda1": 3000, "lambda2": 10, "P_freq": 1000, "nullspace_threshold": 0.02, "edits": 1}
_SPACE = {"nullspace_threshold": 2e-2}
_SEQUENTIAL = {"v_num_grad_steps": 25, "v_lr": 0.1, **_ALPHAEDIT}
_LYAPLOCK = {"mom2_update_weight": 1000, "alpha": 60, "V": 1, "b": 0}

EDITORS: dict[tuple[str, str], Released] = {
    ("gpt2-xl", "alphaedit"): _targets("gpt2-xl", L2=10, **_SPACE),
    ("gpt2-xl", "betaedit"): _targets("gpt2-xl", **_BETA),
    ("gpt2-xl", "deltaedit"): _targets("gpt2-xl", L2=1, var=3, space=0.25, edits=1, **_SPACE),
    ("gpt2-xl", "emmet"): _targets("gpt2-xl", mom2_update_weight=1000, emmet_lambda=0.1, update_norm_lambda=0)
    | {"layers": [17]},
    ("gpt2-xl", "encore"): _targets("gpt2-xl", mom2_update_weight=20000, update_norm_lambda=10, prob_cutoff=-4),
    ("gpt2-xl", "evoedit"): _targets("gpt2-xl", L2=1, **_SPACE),
    ("gpt2-xl", "ft"): {"layers": [1], **_FT},
    ("gpt2-xl", "ft_l"): {"layers": [0], "norm_constraint": 5e-4, **_FT},
    ("gpt2-xl", "lyaplock"): _targets("gpt2-xl", **_LYAPLOCK),
    ("gpt2-xl", "nse"): _targets("gpt2-xl", mom2_update_weight=10000, alpha=35, upper_bound=150, neuron_threshold=1.0),
    ("gpt2-xl", "rlsedit"): _targets("gpt2-xl", mom2_update_weight=20000, lambda_reg=0),
    ("gpt2-xl", "rome"): {"layers": [17], **_ROME_GPT},
    ("gpt2-xl", "rrome"): {"layers": [17], **_ROME_GPT},
    ("gpt-j-6b", "alphaedit"): _targets("gpt-j-6b", L2=10, **_SPACE),
    ("gpt-j-6b", "betaedit"): _targets("gpt-j-6b", **_BETA),
    ("gpt-j-6b", "emmet"): _targets("gpt-j-6b", mom2_update_weight=1, emmet_lambda=0.1, update_norm_lambda=0) | {"layers": [5]},
    ("gpt-j-6b", "evoedit"): _targets("gpt-j-6b", L2=1, **_SPACE),
    ("gpt-j-6b", "ft"): {"layers": [21], **_FT},
    ("gpt-j-6b", "ft_l"): {"layers": [0], "norm_constraint": 5e-5, **_FT},
    ("gpt-j-6b", "lyaplock"): _targets("gpt-j-6b", **_LYAPLOCK),
    ("gpt-j-6b", "nse"): _targets("gpt-j-6b", mom2_update_weight=15000, alpha=15, upper_bound=100, neuron_threshold=0.8),
    ("gpt-j-6b", "rlsedit"): _targets("gpt-j-6b", mom2_update_weight=15000, lambda_reg=0),
    ("gpt-j-6b", "rome"): {"layers": [5], **_ROME_GPT},
    ("gpt-j-6b", "rrome"): {"layers": [5], **_ROME_GPT},
    ("gpt-j-6b", "ultraedit"): {"layers": [*range(18, 27)], "lr": 1e-6, "batch_size": 10, "edits": 100},
    ("llama3-8b", "alphaedit"): _targets("llama3-8b", L2=10, **_SPACE),
    ("llama3-8b", "betaedit"): _targets("llama3-8b", **_BETA),
    ("llama3-8b", "deltaedit"): _targets("llama3-8b", L2=10, var=1.5, space=0.25, edits=1, **_SPACE),
    ("llama3-8b", "emmet"): _targets("llama3-8b", mom2_update_weight=100000, emmet_lambda=0.1, update_norm_lambda=0)
    | {"layers": [5], "v_lr": 5e-1},
    ("llama3-8b", "encore"): _targets("llama3-8b", mom2_update_weight=15000, update_norm_lambda=20, prob_cutoff=-2)
    | {"v_lr": 5e-1},
    ("llama3-8b", "evoedit"): _targets("llama3-8b", L2=4, **_SPACE),
    ("llama3-8b", "ft"): {"layers": [21], **_FT},
    ("llama3-8b", "ft_m"): {"layers": [21], "batch_size": 1, **_FT},
    ("llama3-8b", "lyaplock"): _targets("llama3-8b", **_LYAPLOCK),
    ("llama3-8b", "nse"): _targets("llama3-8b", mom2_update_weight=15000, alpha=2.5, upper_bound=50, neuron_threshold=1.0),
    ("llama3-8b", "rlsedit"): _targets("llama3-8b", mom2_update_weight=15000, lambda_reg=0),
    ("llama3-8b", "rome"): _ROME_LLAMA,
    ("llama3.2-1b", "rome"): _ROME_LLAMA,
    ("llama3.2-3b", "alphaedit"): {"layers": [2, 3, 4, 5, 6], "L2": 10, **_SPACE, **_SEQUENTIAL},
    ("llama3.2-3b", "betaedit"): {"layers": [4, 5, 6, 7, 8], **_SEQUENTIAL, **_BETA},
    ("llama3.2-3b", "emmet"): _targets("llama3.2-3b", mom2_update_weight=100000, emmet_lambda=0.1, update_norm_lambda=0)
    | {"layers": [5]},
    ("llama3.2-3b", "evoedit"): {"layers": [2, 3, 4, 5, 6], "L2": 3, **_SPACE, **_SEQUENTIAL},
    ("llama3.2-3b", "rlsedit"): {"layers": [2, 3, 4, 5, 6], "mom2_update_weight": 15000, "lambda_reg": 0, **_SEQUENTIAL},
    ("llama3.2-3b", "rome"): _ROME_LLAMA,
    ("mistral-7b", "rome"): _ROME_LLAMA,
    ("mistral-7b", "ultraedit"): {"layers": [29, 30], "lr": 1e-6, "batch_size": 10, "edits": 100},
    ("qwen2.5-7b", "alphaedit"): _targets("qwen2.5-7b", L2=1, **_SPACE),
    ("qwen2.5-7b", "betaedit"): {"layers": [4, 5, 6, 7, 8], **_SEQUENTIAL, **_BETA},
    ("qwen2.5-7b", "evoedit"): {"layers": [7, 8, 9, 10, 11], "L2": 2, **_SPACE, **_SEQUENTIAL},
    ("qwen2.5-7b", "rlsedit"): {"layers": [7, 8, 9, 10, 11], "mom2_update_weight": 15000, "lambda_reg": 0, **_SEQUENTIAL},
    ("qwen2.5-7b", "rome"): _ROME_LLAMA,
}
"""Every other editor's file. ``edits`` is the size of a batch, which the drivers take as an argument."""

WHERE = {
    "layers": "model.layers",
    "v_num_grad_steps": "model.targets.steps",
    "v_lr": "model.targets.lr",
    "clamp_norm_factor": "model.targets.clamp",
    "v_weight_decay": "model.targets.weight_decay",
    "kl_factor": "model.targets.kl_factor",
    "mom2_update_weight": "model.editor.init_args.lam",
    "mom2_adjustment": "model.editor.init_args.adjust",
    "L2": "model.editor.init_args.ridge",
    "update_norm_lambda": "model.editor.init_args.ridge",
    "lambda_reg": "model.editor.init_args.ridge",
    "lambda1": "model.editor.init_args.lam",
    "lambda2": "model.editor.init_args.ridge",
    "P_freq": "model.editor.init_args.refresh",
    "nullspace_threshold": "model.editor.init_args.threshold",
    "emmet_lambda": "model.editor.init_args.mu",
    "prob_cutoff": "model.editor.init_args.patience",
    "norm_constraint": "model.editor.init_args.epsilon",
    "num_steps": "model.editor.init_args.steps",
    "batch_size": "model.editor.init_args.minibatch",
    "V": "model.editor.init_args.v",
    **{
        key: f"model.editor.init_args.{key}"
        for key in ("alpha", "b", "upper_bound", "neuron_threshold", "var", "space", "lr", "weight_decay")
    },
    "edits": "data.batch_size",
}
"""Which option of this project has the meaning of a released key."""


def as_options(released: Released) -> dict[str, Any]:
    """A released file in this project's options."""
    out = {}
    for key, value in released.items():
        if key == "context_template_length_params":
            lengths = tuple(length for length, _ in value)
            out["model.targets.contexts"] = sum(count for _, count in value)
            out["model.targets.context_tokens"] = lengths
            assert len({count for _, count in value}) == 1, "contexts share several lengths evenly"
        else:
            out[WHERE[key]] = -value if key == "prob_cutoff" else value
    return out
