"""``lit-edit verify``: replay the recorded numbers of reference implementations and say how far this library is from them.

A *recording* is a folder with the tensors that a method's published code computed on some model (``*.safetensors``), its
hyper-parameters and observed rounding differences (``meta.json``), the model itself (``model/``) and, one level up, the
records it was fed (``records.json``). Names, layers, batches and hyper-parameters are read from those files. A new method
is one new file with a :class:`~lit_edit.verify.recording.Check` and one entry in :data:`lit_edit.verify.cli.CHECKS`.
"""
