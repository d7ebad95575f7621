"""Synthesis with yosys: area, depth and switching energy of the processing elements, relative to the baseline."""
