"""A conversation: every answer sees all turns before it, and only what is new is computed.

python examples/chat.py [MODEL] < questions        one question a line; an empty line ends the conversation
"""

from __future__ import annotations

import sys

import speq


def main(name: str = "smollm2-135m-instruct") -> None:
    model = speq.load(name)
    messages: list[dict[str, str]] = []
    for line in sys.stdin:
        question = line.strip()
        if not question:
            break
        print(f"> {question}")
        messages.append({"role": "user", "content": question})
        stream = model.stream(messages, max_new_tokens=80)
        for piece in stream:
            print(piece.text, end="", flush=True)
        print("\n")
        messages.append({"role": "assistant", "content": stream.result.text})


if __name__ == "__main__":
    main(*sys.argv[1:])
