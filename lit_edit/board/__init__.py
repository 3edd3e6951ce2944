"""A run in TensorBoard: curves over requests in groups, charts, text samples, and hyper-parameters with the scores reached."""

from lit_edit.board.logger import EditBoard, place, write_text

__all__ = ["EditBoard", "place", "write_text"]
