"""Lightning strategies for streams over several processes."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.nn import Module

from lit_edit.errors import EditError
from lit_edit.interrupts import end
from lit_edit.launcher import StreamLauncher
from lit_edit.ranks import ProcessRanks, Ranks


class ReplicatedStrategy(DDPStrategy):
    """One stream over several processes, each with the whole model on a device of its own: ``--trainer.strategy replicated``.

    Every rank sees every batch; it optimises the targets and reads the keys of its share of the requests, and scores its share
    of what is measured (:class:`lit_edit.ranks.ProcessRanks`). No gradient is averaged: the change of a batch is the first
    rank's. Works wherever Lightning's DDP does: started by Lightning itself, by torchrun or under SLURM; gloo on CPUs, NCCL on
    GPUs.

    Args:
        timeout: how long a rank waits for another one before the run ends.
        process_group_backend: ``gloo`` or ``nccl``; default: what fits the device.
        kwargs: further arguments of :class:`lightning.pytorch.strategies.DDPStrategy`.
    """

    def __init__(
        self,
        timeout: timedelta = timedelta(minutes=30),
        process_group_backend: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(timeout=timeout, process_group_backend=process_group_backend, **kwargs)
        self.ranks = Ranks()
        """Who shares the work, once the processes know each other."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = StreamLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """See the base class."""
        super().setup_environment()
        self.ranks = ProcessRanks(self.root_device) if self.world_size > 1 else Ranks()

    def setup(self, trainer: L.Trainer) -> None:
        """See the base class; and exchange Lightning's handler of SIGTERM, which is set up after this.

        That one sends the signal on to all ranks from within the handler, in the middle of whatever they exchange, and they
        wait for each other for ever. Where one rank ends, the others notice.
        """
        super().setup(trainer)
        if self.ranks.size > 1:
            connector: Any = trainer._signal_connector
            connector._sigterm_notifier_fn = end

    def _setup_model(self, model: Module) -> Any:
        """No wrapper around the model: it has no gradients that could be averaged."""
        return model

    # ------------------------------------------------------------------------------------------------ exchanges

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the others, unless they are known to be gone."""
        if not self.ranks.alone:
            super().barrier(*args, **kwargs)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """One rank's object on all of them, unless they are known to be gone."""
        return obj if self.ranks.alone else super().broadcast(obj, src)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """The first rank writes; where it cannot, nobody goes on."""
        with self.ranks.together():
            super().save_checkpoint(checkpoint, filepath, storage_options)


def ranks_of(trainer: L.Trainer) -> Ranks:
    """Who shares the work of a run.

    Raises:
        EditError: if several processes would each edit for themselves.
    """
    if trainer.world_size == 1:
        return Ranks()
    ranks = getattr(trainer.strategy, "ranks", None)
    if not isinstance(ranks, Ranks):
        raise EditError(
            f"the run spans {trainer.world_size} processes under {type(trainer.strategy).__name__}, which does not know how to "
            "share one stream of edits; use --trainer.strategy replicated"
        )
    return ranks


def of_several() -> bool:
    """Whether this process is another rank than the first one, as far as its environment tells before ranks know each other."""
    names = ("RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return any(int(os.environ.get(name) or 0) > 0 for name in names)


def register() -> None:
    """Let Lightning know the strategies of this project by name."""
    if "replicated" not in StrategyRegistry:
        StrategyRegistry.register("replicated", ReplicatedStrategy, description="one stream over several replicas of a model")
