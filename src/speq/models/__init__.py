"""Decoder-only transformers, described once over the operators: programs, KV cache, tokenizers and the engine."""
