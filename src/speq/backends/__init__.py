"""Who computes a program: the definition in NumPy, and the native kernels."""
