"""A run in TensorBoard: curves over requests in groups, charts, text samples, and hyper-parameters with the scores reached."""

from lit_edit.board.logger import EditBoard, place

__all__ = ["EditBoard", "place"]
