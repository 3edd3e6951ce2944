"""What a model is to an editor: its parts, its name, and why it may not be one that can be edited."""
