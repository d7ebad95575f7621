"""Performance and energy of accelerators that decode language models: analytical, layer by layer and pass by pass.

A machine (``config``) and a model's shape (``shapes``) give the cost of a pass (``passes``); the passes of a generation
come from a trace or an acceptance model (``acceptance``), and ``run`` adds them up.
"""
