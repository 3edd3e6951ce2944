"""What a run will cost before anything heavy is loaded: memory, disk, time, and whether it fits."""
