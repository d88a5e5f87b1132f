"""The GGUF file: header, metadata, blocks, and their rewriting for MLX."""
