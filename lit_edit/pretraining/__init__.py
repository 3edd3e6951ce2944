"""Pre-training of small models that can be edited: what the embedded world and the reference model share.

``module`` is the Lightning module with the training-time tricks (``tricks``), ``rows`` turns marked documents (``document``)
into tensors and masks, ``batches`` makes them one after the other, ``network`` builds the model, ``measures`` looks at it,
``command`` is the command line. What is learned is the business of :mod:`lit_edit.world` and :mod:`lit_edit.reference`.
"""
