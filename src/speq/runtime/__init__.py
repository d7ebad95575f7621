"""What runs a model: batches of spans, the KV pool, the draw, and the engine that puts them together."""
