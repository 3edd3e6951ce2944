"""A run on disk and in time: its folder, its checkpoints, where it stands, and how it ends."""
