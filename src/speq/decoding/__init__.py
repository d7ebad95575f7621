"""From logits to tokens: drafters, verification, the policy, sequences and the scheduler that runs their passes."""

from speq.decoding.drafters import Cascade, Drafter, NoDrafter, SelfDrafter, Straight
from speq.decoding.generate import generate_tokens
from speq.decoding.ngram import NgramDrafter
from speq.decoding.policy import Policy, Situation
from speq.decoding.scheduler import Chunk, Scheduler
from speq.decoding.sequence import Pass, Request, Round, Sequence
from speq.decoding.stats import Statistics
from speq.decoding.stop import StopStrings
from speq.decoding.successors import SuccessorTable
from speq.decoding.verify import Proposal, Verification, verify

__all__ = [
    "Cascade",
    "Chunk",
    "Drafter",
    "NgramDrafter",
    "NoDrafter",
    "Pass",
    "Policy",
    "Proposal",
    "Request",
    "Round",
    "Scheduler",
    "SelfDrafter",
    "Sequence",
    "Situation",
    "Statistics",
    "StopStrings",
    "Straight",
    "SuccessorTable",
    "Verification",
    "generate_tokens",
    "verify",
]
