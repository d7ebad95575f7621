"""The reference backend, in NumPy: what every other backend computes."""
