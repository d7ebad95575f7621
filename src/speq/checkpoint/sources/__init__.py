"""Where weights come from: one interface over Hugging Face directories and GGUF files."""
