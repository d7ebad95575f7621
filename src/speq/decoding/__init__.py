"""From logits to tokens: drafters, verification, the policy, sequences and the scheduler that runs their passes."""

from speq.decoding.drafters import Cascade, Drafter, NoDrafter, SelfDrafter, SuccessorDrafter
from speq.decoding.generate import generate_tokens
from speq.decoding.policy import Policy
from speq.decoding.scheduler import Chunk, Scheduler
from speq.decoding.sequence import Pass, Request, Round, Sequence
from speq.decoding.stats import Statistics
from speq.decoding.stop import StopStrings
from speq.decoding.verify import Proposal, Verification, verify

__all__ = [
    "Cascade",
    "Chunk",
    "Drafter",
    "NoDrafter",
    "Pass",
    "Policy",
    "Proposal",
    "Request",
    "Round",
    "Scheduler",
    "SelfDrafter",
    "Sequence",
    "Statistics",
    "StopStrings",
    "SuccessorDrafter",
    "Verification",
    "generate_tokens",
    "verify",
]
