"""The Python interface, and the comparisons that show that it keeps its promises."""
