"""Tasks of the lm-evaluation-harness on the model as it is in memory."""

from __future__ import annotations

import copy
import importlib.util
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy
import torch
from torch import Tensor

from lit_edit.errors import EditError
from lit_edit.micro_batches import enough_memory
from lit_edit.passes.forward import frozen
from lit_edit.probes.base import Probe
from lit_edit.probes.source import whole
from lit_edit.scoring import Scorer

_DECODING = {"generate_until": "generated", "multiple_choice": "likelihood"}


class LMEval(Probe):
    """Tasks of EleutherAI's lm-evaluation-harness, by its own code and prompts: ``pip install 'lit-edit[lm-eval]'``.

    Numbers are named ``<task>_<metric>``, with ``_<filter>`` behind where a task filters its answers, and equal those of the
    harness's own command line for the same task, shots, limit and batch size. A group of tasks (``mmlu``) gives one number per
    metric over all documents of its tasks. What is kept of a document is one row per metric, from the harness's log of samples;
    metrics over texts (BLEU) have no such numbers and are left out.

    The harness seeds the global random states, puts the model into evaluation mode and changes the tokenizer: it gets a copy of
    the tokenizer, and states and modes are put back. Its cache of answers, those of other weights, is never used.

    Args:
        tasks: names of tasks, groups or tags, or paths of task files (YAML).
        limit: documents per task, from the beginning; ``None`` takes all.
        shots: examples in front of each document; ``None`` leaves it to the task.
        batch_size: rows to a forward pass.
        include_path: a folder of task files of one's own.
        name: name of the probe.

    Raises:
        EditError: if no task is named, or, when the tasks are first needed, if the harness is not installed or a task cannot be
            loaded.
    """

    columns = ("task", "metric", "value", "second")
    one_row_per_item = False

    def __init__(
        self,
        tasks: list[str],
        limit: int | None = 100,
        shots: int | None = None,
        batch_size: int = 8,
        include_path: str | None = None,
        name: str = "lm_eval",
    ) -> None:
        if not tasks:
            raise EditError("the probe LMEval names no tasks; give some, as in tasks: [hellaswag, piqa].")
        if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
            raise EditError(f"the probe LMEval names the task {twice[0]!r} twice.")
        if limit is not None:
            whole("limit", limit, 1)
        if shots is not None:
            whole("shots", shots, 0)
        self.tasks, self.limit, self.shots, self.name = list(tasks), limit, shots, name
        self.batch_size = whole("batch_size", batch_size, 1)
        self.include_path = include_path
        self.shown = f"{tasks[0]}_acc/likelihood"
        self._manager: Any = None
        self._loaded: dict[str, Any] = {}
        self._metrics: dict[str, list[tuple[str, str]]] = {}

    def items(self) -> Sequence[str]:
        """See :meth:`Probe.items`; an item is a task, which gives many rows."""
        self._harness()
        return self.tasks

    def measure(self, scorer: Scorer, items: Sequence[str]) -> Tensor:
        """See :meth:`Probe.measure`; the rows of a task's documents, one per metric."""
        found = [row for task in items for row in self._task(scorer, task)]
        return torch.tensor(found, dtype=torch.float64).view(-1, len(self.columns))

    def _harness(self) -> Any:
        """The package's task manager.

        Raises:
            EditError: if the package is not installed.
        """
        if self._manager is None:
            missing = [name for name in ("lm_eval", "accelerate") if importlib.util.find_spec(name) is None]
            if missing:
                raise EditError(
                    f"the probe {self.name} runs the lm-evaluation-harness and the package {missing[0]} is not installed; "
                    "pip install 'lit-edit[lm-eval]', or take the probe out."
                )
            self._manager = import_module("lm_eval.tasks").TaskManager(include_path=self.include_path)
        return self._manager

    def _load(self, task: str) -> Any:
        if task not in self._loaded:
            try:
                self._loaded[task] = self._harness().load([task])["tasks"]
            except EditError:
                raise
            except Exception as error:  # whatever a task file, a data set or the network came to
                reason = (str(error).strip().splitlines() or [""])[0]
                raise EditError(
                    f"the lm-evaluation-harness cannot load the task {task!r} ({type(error).__name__}: {reason}); "
                    "name one that 'lm-eval ls tasks' lists and whose data can be reached."
                ) from error
        return self._loaded[task]

    def _task(self, scorer: Scorer, task: str) -> list[tuple[float, float, float, float]]:
        smaller = f"a batch_size below {self.batch_size} helps"
        with enough_memory(f"the task {task} of the harness", smaller), untouched(scorer.anatomy.model):
            subtasks = self._load(task)  # loading draws random numbers, too
            model = import_module("lm_eval.models.huggingface").HFLM(
                pretrained=scorer.anatomy.model,
                tokenizer=copy.deepcopy(scorer.encoder.tokenizer),
                batch_size=self.batch_size,
                max_length=scorer.anatomy.positions,
            )
            results = import_module("lm_eval").simple_evaluate(
                model=model,
                tasks=list(subtasks.values()),
                num_fewshot=self.shots,
                limit=self.limit,
                bootstrap_iters=0,
                log_samples=True,
                use_cache=None,
                task_manager=self._harness(),
            )
        if results is None:  # a process of several that the harness gives nothing to
            return []
        samples = [sample for name in subtasks for sample in results["samples"][name]]
        return self._rows(task, samples)

    def _rows(self, task: str, samples: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, float, float]]:
        """Rows of a task from the harness's samples; the numbers of metrics go by their sorted names."""
        values: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for sample in samples:
            for metric in sample["metrics"]:
                pair = as_pair(sample[metric])
                if pair is not None:
                    values.setdefault((metric, sample["filter"]), []).append(pair)
        if not values:
            raise EditError(f"the task {task!r} of the lm-evaluation-harness gives no number per document; take it out.")
        self._metrics[task] = sorted(values)
        if task == self.tasks[0]:
            names = [self._label(task, *metric) for metric in self._metrics[task]]
            at = names.index(self.shown) if self.shown in names else 0
            self.shown = names[at]
            metric = self._metrics[task][at][0]
            self.higher_is_better = bool(self._first(task).higher_is_better().get(metric, True))
        number = self.tasks.index(task)
        return [(number, i, *pair) for i, metric in enumerate(self._metrics[task]) for pair in values[metric]]

    def _first(self, task: str) -> Any:
        """One of the tasks of a name; those of a group share metrics."""
        return next(iter(self._load(task).values()))

    def _label(self, task: str, metric: str, filtered: str) -> str:
        short = task.rsplit("/", 1)[-1].removesuffix(".yaml")
        decoding = _DECODING.get(str(self._first(task).OUTPUT_TYPE), "teacher_forced")
        return f"{short}_{metric}{'' if filtered == 'none' else f'_{filtered}'}/{decoding}"

    def summarise(self, outcomes: Tensor) -> dict[str, float]:
        """See :meth:`Probe.summarise`; each metric by the harness's own aggregation, ``nan`` where no row is left."""
        found = {}
        for number, task in enumerate(self.tasks):
            mine = outcomes[outcomes[:, 0] == number]
            for i, (metric, filtered) in enumerate(self._metrics.get(task, ())):
                pairs = mine[mine[:, 1] == i][:, 2:].tolist()
                combine: Callable[[list[Any]], Any] = self._first(task).aggregation()[metric]
                values = [first if math.isnan(second) else (first, second) for first, second in pairs]
                found[self._label(task, metric, filtered)] = float(combine(values)) if values else math.nan
        return found


def as_pair(value: Any) -> tuple[float, float] | None:
    """A document's value of a metric as two numbers, ``None`` if it is not made of one or two.

    A mean needs one, correlations and weighted means two (right and predicted label; log-likelihood and words).

    >>> as_pair(True), as_pair((0, 1)), as_pair("text")
    ((1.0, nan), (0.0, 1.0), None)
    """
    parts = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, int | float | numpy.number | numpy.bool_) for part in parts):
        return None
    return float(parts[0]), float(parts[1]) if len(parts) == 2 else math.nan


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Random states (Python, NumPy, torch on all devices), modes and generation settings after the block as before it."""
    states = random.getstate(), numpy.random.get_state()
    settings = copy.deepcopy(getattr(model, "generation_config", None))
    try:
        with torch.random.fork_rng(), torch.no_grad(), frozen(model):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        if settings is not None:
            model.generation_config = settings
