"""Lightning's TensorBoard logger with the stream as its horizontal axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from lit_edit.board.tags import description, shown


class EditBoard(TensorBoardLogger):
    """TensorBoard's files of a run, made to be read by others.

    The horizontal axis ("Step") counts requests of the stream that lie behind, so that runs in batches of different sizes can
    be laid over each other: 0 is the unedited model. Names are grouped by what they are about
    (:data:`lit_edit.board.tags.GROUPS`), and carry a description. :class:`lit_edit.callbacks.BoardKeeper` tells it where the
    stream stands and adds charts, hyper-parameters and texts; without it, steps are the trainer's.

    Args:
        save_dir: see :class:`~lightning.pytorch.loggers.TensorBoardLogger`, as for all others.
    """

    def __init__(self, save_dir: Any, **more: Any) -> None:
        super().__init__(save_dir, **{"default_hp_metric": False, **more})
        self.position: Callable[[], int] | None = None
        """How many requests lie behind, once somebody can tell."""
        self._told: set[str] = set()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write numbers; Lightning's epoch is left out, one epoch being one stream."""
        if self.position is not None:
            step = self.position()
        for name, value in metrics.items():
            if name == "epoch":
                continue
            tag = shown(name)
            about = None
            if tag not in self._told:  # TensorBoard keeps what the first number of a name says of it
                self._told.add(tag)
                scalars = SummaryMetadata.PluginData(plugin_name="scalars")
                about = SummaryMetadata(plugin_data=scalars, summary_description=description(tag))
            self._write(Summary(value=[Summary.Value(tag=tag, simple_value=float(value), metadata=about)]), step)

    @rank_zero_only
    def arrange(self, layout: layout_pb2.Layout) -> None:
        """Write the charts of the Custom Scalars tab."""
        about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()])
        self._write(Summary(value=[Summary.Value(tag="custom_scalars__config__", tensor=tensor, metadata=about)]), 0)

    @rank_zero_only
    def log_session(self, tag: str, content: bytes) -> None:
        """Write an event of the HParams tab, see :mod:`lit_edit.board.hparams`."""
        about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content))
        empty = TensorProto(dtype=DT_FLOAT, float_val=[0.0])
        self._write(Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=empty)]), 0)

    @rank_zero_only
    def tell(self, tag: str, text: str, step: int) -> None:
        """Write a text, in Markdown; ``add_text`` of the experiment would put ``/text_summary`` after its name."""
        about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode(errors="backslashreplace")])
        self._write(Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=about)]), step)

    def _write(self, summary: Summary, step: int | None) -> None:
        self.experiment._get_file_writer().add_summary(summary, step)  # what SummaryWriter's own methods call


def place(logger: Logger, name: str, step: int) -> tuple[str, int]:
    """Name and step under which a picture or a text goes to TensorBoard.

    Args:
        logger: where to.
        name: what it is called elsewhere.
        step: of the trainer, for loggers that count batches.
    """
    if not isinstance(logger, EditBoard):
        return name, step
    return shown(name), step if logger.position is None else logger.position()


def write_text(logger: TensorBoardLogger, tag: str, text: str, step: int) -> None:
    """Write a text to TensorBoard; tag and step as :func:`place` gives them.

    Args:
        logger: where to.
        tag: its name there.
        text: Markdown.
        step: where on the axis.
    """
    if isinstance(logger, EditBoard):
        logger.tell(tag, text, step)
    else:
        logger.experiment.add_text(tag, text, step)
