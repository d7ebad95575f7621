"""Golden models: what the RTL computes, bit for bit, in integers of NumPy."""
