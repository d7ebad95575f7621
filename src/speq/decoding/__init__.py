"""Speculative decoding with one model and one KV cache: drafters, verification, seed-exact sampling, the loop."""

from speq.decoding.controller import Controller
from speq.decoding.drafter import Draft, Drafter, NoDrafter, SelfDrafter
from speq.decoding.engine import Engine
from speq.decoding.generate import generate_tokens
from speq.decoding.sampling import Choice, Sampling, choose
from speq.decoding.stats import Statistics
from speq.decoding.stop import StopStrings
from speq.decoding.verifier import Verdict, verify

__all__ = [
    "Choice",
    "Controller",
    "Draft",
    "Drafter",
    "Engine",
    "NoDrafter",
    "Sampling",
    "SelfDrafter",
    "Statistics",
    "StopStrings",
    "Verdict",
    "choose",
    "generate_tokens",
    "verify",
]
