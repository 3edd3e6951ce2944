"""What is computed once from the original model, kept in the store, and taken up again after an interrupt."""
