"""From checkpoints to planes and back: converting, calibrating, locating, restoring, inspecting."""
