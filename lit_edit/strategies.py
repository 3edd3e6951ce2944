"""Lightning strategies for streams over several processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy, StrategyRegistry
from torch.nn import Module
from torch.optim import Optimizer

from lit_edit.errors import EditError
from lit_edit.parallel.launcher import StreamLauncher
from lit_edit.parallel.process_ranks import LockstepRanks, ProcessRanks
from lit_edit.parallel.ranks import RankFailed, Ranks
from lit_edit.parallel.sharding import check_device
from lit_edit.runs.interrupts import end


class _OneStream(ParallelStrategy):
    """What strategies have in common whose processes work on one stream."""

    ranks: Ranks
    """Who shares the work, once the processes know each other."""

    def _configure_launcher(self) -> None:
        mine: Any = self  # what both bases have, and their common base does not declare
        self._launcher = StreamLauncher(mine.cluster_environment, mine.num_processes, mine.num_nodes)

    def setup(self, trainer: L.Trainer) -> None:
        """See the base class; and exchange Lightning's handler of SIGTERM, which is set up after this.

        That one sends the signal on to all ranks from within the handler, in the middle of whatever they exchange, and they
        wait for each other for ever. Where one rank ends, the others notice.
        """
        super().setup(trainer)
        if self.ranks.size > 1:
            connector: Any = trainer._signal_connector
            connector._sigterm_notifier_fn = end

    def on_exception(self, exception: BaseException) -> None:
        """Where the others were lost, say which rank ended and how, if it was started here."""
        launcher = self.launcher
        if isinstance(exception, RankFailed) and isinstance(launcher, StreamLauncher) and launcher.watch is not None:
            launcher.watch.tell(wait=2.0)
        super().on_exception(exception)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the others, unless they are known to be gone."""
        if not self.ranks.alone:
            super().barrier(*args, **kwargs)  # type: ignore[safe-super]

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """One rank's object on all of them, unless they are known to be gone."""
        return obj if self.ranks.alone else super().broadcast(obj, src)  # type: ignore[safe-super]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """The first rank writes; where it cannot, nobody goes on."""
        self.ranks.first_does(lambda: self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options))


class ReplicatedStrategy(_OneStream, DDPStrategy):
    """One stream over several processes, each with the whole model on a device of its own: ``--trainer.strategy replicated``.

    Every rank sees every batch; it optimises the targets and reads the keys of its share of the requests, and scores its share
    of what is measured (:class:`lit_edit.parallel.ranks.ProcessRanks`). No gradient is averaged: the change of a batch is the
    first rank's. Works wherever Lightning's DDP does: started by Lightning itself, by torchrun or under SLURM; gloo on CPUs,
    NCCL on GPUs.

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

    def setup_environment(self) -> None:
        """See the base class."""
        super().setup_environment()
        self.ranks = ProcessRanks(self.root_device) if self.world_size > 1 else Ranks()

    def _setup_model(self, model: Module) -> Any:
        """No wrapper around the model: it has no gradients that could be averaged."""
        return model


class ShardedStrategy(_OneStream, ModelParallelStrategy):
    """One stream over several processes that hold a part of the model each: ``--trainer.strategy sharded``.

    For models that do not fit one device. The blocks are cut by FSDP2 (:mod:`lit_edit.parallel.sharding`), and all ranks run
    all requests together: that takes memory from each of them and makes none of them faster. Masters, statistics and solves are
    whole on every rank, and so are checkpoints, which any other strategy can go on from.

    Args:
        timeout: how long a rank waits for another one before the run ends.
        process_group_backend: ``gloo`` or ``nccl``; default: what fits the device.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30), process_group_backend: str | None = None) -> None:
        super().__init__(tensor_parallel_size=1, timeout=timeout, process_group_backend=process_group_backend)
        self.ranks = Ranks()

    def setup_environment(self) -> None:
        """See the base class."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        if self._data_parallel_size > 1:
            check_device(self.root_device)
        super().setup_environment()
        self.ranks = LockstepRanks(self.root_device) if self.world_size > 1 else Ranks()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """What a checkpoint holds is whole: it can be loaded before anything is on its device."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Plain SGD on whole masters."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Everything, of which the module keeps what is whole (:meth:`lit_edit.module.ContinualEditor.on_save_checkpoint`)."""
        module: Any = self.lightning_module
        state: dict[str, Any] = module.state_dict()
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """See the base class of all strategies."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """See the base class of all strategies."""
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """See the base class of all strategies."""
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """See the base class of all strategies."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def mesh_of(trainer: L.Trainer) -> Any | None:
    """The device mesh to cut a model over, ``None`` where it stays whole."""
    strategy = trainer.strategy
    return strategy.device_mesh["data_parallel"] if isinstance(strategy, ShardedStrategy) and strategy.ranks.size > 1 else None


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
    for name, strategy in (("replicated", ReplicatedStrategy), ("sharded", ShardedStrategy)):
        if name not in StrategyRegistry:
            StrategyRegistry.register(name, strategy, description=(strategy.__doc__ or "").splitlines()[0])
