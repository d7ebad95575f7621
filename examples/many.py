"""Several texts at once on one model, which share its passes; each is the text that it would be alone.

python examples/many.py [MODEL]
"""

from __future__ import annotations

import sys

import speq

RIVERS = ["Name a river in Europe.", "Name a river in Africa.", "Name a river in Asia."]


def main(name: str = "smollm2-135m-instruct") -> None:
    model = speq.load(name)

    print("All to the end:")
    for prompt, result in zip(RIVERS, model.generate_many(RIVERS, max_new_tokens=24), strict=True):
        print(f"  {prompt} {result.text!r}")

    print("Piece by piece, in turns:")
    running = {prompt: model.stream(prompt, max_new_tokens=24) for prompt in RIVERS}
    while running:
        for prompt, stream in list(running.items()):
            if next(stream, None) is None:
                print(f"  {prompt} {stream.result.text!r}")
                del running[prompt]


if __name__ == "__main__":
    main(*sys.argv[1:])
