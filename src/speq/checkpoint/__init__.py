"""Files: checkpoints to read, converted checkpoints to write and map, and models to fetch."""
