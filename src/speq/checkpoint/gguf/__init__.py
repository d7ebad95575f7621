"""GGUF files: the container, and what it says of a model in Hugging Face's words."""
