"""Print a text as it is written, and what speculation did for it.

python examples/stream.py [MODEL] [PROMPT]
"""

from __future__ import annotations

import sys

import speq


def main(name: str = "smollm2-135m-instruct", prompt: str = "Why is the sky blue?") -> None:
    model = speq.load(name)
    stream = model.stream(prompt, max_new_tokens=120)
    for piece in stream:
        print(piece.text, end="", flush=True)

    stats = stream.result.stats
    print(f"\n\n{stats.new_tokens} tokens, {stats.tokens_per_second:.0f} a second; ", end="")
    print(f"{stats.accepted} of {stats.drafted} drafted tokens were right")


if __name__ == "__main__":
    main(*sys.argv[1:])
