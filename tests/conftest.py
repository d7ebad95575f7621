"""What several test packages share: a model without weights, tiny checkpoints with and without a byte tokenizer."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that tests share

from hf_models import CONFIG, MakeModel, Tensors, save

if TYPE_CHECKING:
    from speq.runtime.batch import Batch
    from speq.runtime.kv import KVHandle


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


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Writes a Hugging Face directory: ``make_model(tensors, name="model", shards=1, tokenizer=True)``."""

    def make(tensors: Tensors, name: str = "model", shards: int = 1, tokenizer: bool = True, **config: Any) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(CONFIG | config))
        if tokenizer:
            (path / "tokenizer.json").write_text("{}")
        if shards == 1:
            save(path / "model.safetensors", tensors)
            return path
        names = list(tensors)
        weight_map = {}
        for index in range(shards):
            file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
            save(path / file, {key: tensors[key] for key in names[index::shards]})
            weight_map |= dict.fromkeys(names[index::shards], file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return path

    return make


@pytest.fixture
def any_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions take tensors as they are, which need not be those of a model."""
    monkeypatch.setattr("speq.conversion.convert.fit_source", lambda source: source)


class MockEngine:
    """Logits are a pure function of the path of tokens to a row, the draft's are a noisy version of them.

    Some positions are nearly certain and some wide open, as in real text; ``noise`` 0 makes a perfect draft. The engine
    checks how it is used: exact rows are only ever computed over exact cache entries, and the cache never overflows. A
    virtual clock advances with every pass, by costs in seconds, so that tests of speed need no real time.
    """

    levels = ("draft", "exact")

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
        sequences: int = 1,
    ) -> None:
        from speq.runtime.batch import Limits
        from speq.runtime.kv import KVPool

        self.vocab_size = vocab_size
        self.taps: tuple[str, ...] = ()
        self.limits = Limits(context_length, 256, 64, 16, sequences)
        self.kv = KVPool(1, 1, 1, context=context_length, sequences=sequences)
        self.noise, self.spread, self.salt = noise, spread, salt
        self.draft_cost, self.verify_cost = draft_cost, verify_cost
        self.jitter, self._timing = jitter, np.random.default_rng(salt)
        self.now = 0.0
        self.passes: list[tuple[int, bool]] = []

    def clock(self) -> float:
        return self.now

    def check(self, kv: KVHandle, tokens: Sequence[int]) -> None:
        assert kv.length + len(tokens) <= self.limits.context

    def run(self, batch: Batch) -> MockOutput:
        draft = batch.level == "draft"
        rows = sum(len(span.tokens) for span in batch.spans)
        assert 0 < rows <= self.limits.rows
        self.passes.append((rows, draft))
        cost = self.draft_cost if draft else self.verify_cost[min(rows, len(self.verify_cost)) - 1]
        # A busy machine: most passes take a little longer, and one in twenty a lot.
        self.now += cost * (1 + self.jitter * (self._timing.exponential() + 10 * (self._timing.random() < 0.05)))
        logits, drawn = [], []
        for span in batch.spans:
            kv, tokens = span.kv, list(span.tokens)
            assert draft or kv.exact == kv.length, "an exact pass over approximate entries"
            assert all(0 <= token < self.vocab_size for token in tokens)
            self.kv.make_room(kv, len(tokens))
            histories: list[list[int]] = []
            for row, token in enumerate(tokens):
                parent = row - 1 if span.parents is None else span.parents[row]
                histories.append([*(histories[parent] if parent >= 0 else kv.tokens), token])
            wanted = [histories[index] for index in span.wanted]
            logits.append([self.row(history, draft) for history in wanted])
            drawn.append([(row, span.sampling, len(h), span.likely) for row, h in zip(logits[-1], wanted, strict=True)])
            self.kv.extend(kv, tokens, exact=not draft)
        return MockOutput(logits, drawn)

    def row(self, history: Sequence[int], draft: bool = False) -> NDArray[np.float32]:
        """Logits after ``history``."""
        text = repr(list(history[-6:])) + str(len(history)) + str(self.salt)
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        row = rng.standard_normal(self.vocab_size) * self.spread * rng.choice([0.5, 1.0, 4.0])
        if draft:
            row += rng.standard_normal(self.vocab_size) * self.noise
        return row.astype(np.float32)


class MockOutput:
    """What a batch of the mock engine gave; draws are made when they are looked at, as they may fail."""

    def __init__(self, logits: list[list[NDArray[np.float32]]], draws: list[list[tuple[Any, Any, int, int]]]) -> None:
        self._logits, self._draws = logits, draws

    def drawn(self, span: int) -> list[Any]:
        from speq.runtime.sampling import choose

        draws = self._draws[span]
        return [choose(row, sampling, at, likely=likely) for row, sampling, at, likely in draws if sampling]

    def logits(self, span: int) -> NDArray[np.float32]:
        return np.array(self._logits[span], np.float32)


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
