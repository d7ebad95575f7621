"""The accelerator in Amaranth: every circuit computes, bit for bit, what its golden model says."""
