"""Check that nothing changes the text: plain, drafted, sampled, and beside other texts.

`speq verify MODEL` looks much further, down to the bits of every pass; this is what you would write in a test of your
own program. Exit code 1 if a single token differs.

    python examples/exact.py [MODEL]
"""

from __future__ import annotations

import sys

import speq

PROMPTS = ["Explain why ice floats.", "Write a short poem about rain."]
SAMPLINGS = {"greedy": speq.Sampling(), "sampled": speq.Sampling(temperature=0.8, top_p=0.95, seed=7)}


def main(name: str = "smollm2-135m-instruct") -> int:
    model = speq.load(name)
    differing = 0
    for kind, sampling in SAMPLINGS.items():
        plain = [model.generate(prompt, max_new_tokens=40, sampling=sampling, draft="none") for prompt in PROMPTS]
        for draft in ("auto", "self", "cascade"):
            together = model.generate_many(PROMPTS, max_new_tokens=40, sampling=sampling, draft=draft)
            same = [a.token_ids == b.token_ids for a, b in zip(plain, together, strict=True)]
            differing += same.count(False)
            print(f"{kind}, draft {draft}, {len(PROMPTS)} texts at once: {same.count(True)} of {len(same)} the same")
    print("exact" if not differing else "NOT exact: this is a bug, please report it")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
