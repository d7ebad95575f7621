"""The operators of a decoding step, the program that lists them, and what a backend offers to run it."""
