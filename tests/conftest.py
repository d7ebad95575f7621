"""What several test packages share: a model without weights, and a tiny real checkpoint with a byte tokenizer."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray


def pytest_configure() -> None:
    """Programs under test begin with the signals of a terminal, whatever a shell has set in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def mock_engine() -> type[MockEngine]:
    return MockEngine


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """A function that writes a random Hugging Face checkpoint, FP16, to a directory."""
    return _write_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: a Llama of two layers whose tokens are bytes."""
    return _write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


class MockEngine:
    """Logits are a pure function of the token history, the draft's are a noisy version of them.

    Some positions are nearly certain and some wide open, as in real text; ``noise`` 0 makes a perfect draft. The engine
    checks how it is used: exact rows are only ever computed over exact cache entries, and the cache never overflows. A
    virtual clock advances with every pass, by costs in seconds, so that tests of speed need no real time.
    """

    def __init__(
        self,
        vocab_size: int = 61,
        context_length: int = 1000,
        *,
        noise: float = 0.5,
        spread: float = 3.0,
        draft_cost: float = 0.3,
        verify_cost: Sequence[float] = (1.0,),
        jitter: float = 0.0,
        salt: int = 0,
    ) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.noise, self.spread, self.salt = noise, spread, salt
        self.draft_cost, self.verify_cost = draft_cost, verify_cost
        self.jitter, self._timing = jitter, np.random.default_rng(salt)
        self.now = 0.0
        self.passes: list[tuple[int, bool]] = []
        self._cache: list[tuple[int, bool]] = []  # (token, whether its entry is exact)

    @property
    def length(self) -> int:
        return len(self._cache)

    def clock(self) -> float:
        return self.now

    def forward(
        self, tokens: Sequence[int], *, draft: bool = False, logits: Literal["none", "last", "all"] = "last"
    ) -> NDArray[np.float32]:
        self.passes.append((len(tokens), draft))
        cost = self.draft_cost if draft else self.verify_cost[min(len(tokens), len(self.verify_cost)) - 1]
        # A busy machine: most passes take a little longer, and one in twenty a lot.
        self.now += cost * (1 + self.jitter * (self._timing.exponential() + 10 * (self._timing.random() < 0.05)))
        rows = []
        for token in tokens:
            assert draft or all(exact for _, exact in self._cache), "an exact pass over approximate entries"
            assert 0 <= token < self.vocab_size
            self._cache.append((token, not draft))
            assert self.length <= self.context_length, "the cache overflows"
            rows.append(self._row(draft))
        wanted = {"none": rows[:0], "last": rows[-1:], "all": rows}[logits]
        return np.array(wanted, np.float32).reshape(-1, self.vocab_size)

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self._cache[length:]

    def _row(self, draft: bool) -> NDArray[np.float32]:
        history = repr([token for token, _ in self._cache[-6:]]) + str(self.length) + str(self.salt)
        digest = hashlib.blake2b(history.encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        row = rng.standard_normal(self.vocab_size) * self.spread * rng.choice([0.5, 1.0, 4.0])
        if draft:
            row += rng.standard_normal(self.vocab_size) * self.noise
        return row.astype(np.float32)


_SIZES = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
_TEMPLATE = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}{% endfor %}<|turn|>"


def _write_checkpoint(
    path: Path,
    *,
    tokenizer: bool = True,
    change: Callable[[dict[str, NDArray[Any]]], None] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    from safetensors.numpy import save_file

    from speq.models.config import model_config
    from speq.models.decoder import weight_shapes

    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in weight_shapes(model_config({**_SIZES})).items():
        spread = 1.5 / shape[-1] ** 0.5 if len(shape) == 2 else 0.1
        tensors[name] = (rng.standard_normal(shape) * spread + (len(shape) == 1)).astype(np.float16)
    if change:
        change(tensors)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({**_SIZES, **config}))
    if tokenizer:
        _write_byte_tokenizer(path)
    return path


def _write_byte_tokenizer(path: Path) -> None:
    """Every byte is a token; 256 and 257 begin and end a text, 258 begins a turn."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|begin|>", "<|end|>", "<|turn|>")])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": _TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
