"""What the accelerator is tested with, below its RTL: the world around it, operations, and what they cover."""
