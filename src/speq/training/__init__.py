"""Training a head: a small layer that proposes tokens which the draft level then checks several at a time.

A head reads what a pass has computed anyway (hidden states of three depths) and the token that follows, and guesses
the tokens after it. It is written in the public layout of EAGLE-3 heads. docs/heads.md has the structure, the command
and what was measured.

    conversation.py  how turns of a conversation begin and end in the tokens of a model
    documents.py     text that the user gives, from files
    writing.py       text that the model writes itself
    corpus.py        all of it as rows of tokens, with a part held out
    target.py        the model in torch, at both of its levels
    head.py          the head: its parameters and its arithmetic
    unroll.py        chains of proposals, their loss and how many are right
    vocabulary.py    which of the model's tokens a head can propose
    pool.py          what the model says about rows of text, computed once and used several times
    job.py           what is asked for, and the directory that keeps the work until the head is there
    train.py         the training: steps, checkpoints, measurements
    layout.py        the directory that a trained head becomes, as it is written; speq.models.head_files reads it
    chains.py        acceptance on prompts, as a draft would meet them

Everything but this file and ``documents.py`` needs torch, an extra; :func:`require_torch` says so in one line.
"""

from __future__ import annotations

from importlib.util import find_spec

from speq.errors import SpeqError


def require_torch() -> None:
    """Refuse to go on without torch.

    Raises:
        SpeqError: torch is not installed.
    """
    if find_spec("torch") is None:
        raise SpeqError("training a head needs torch: pip install 'speq[train]'")
