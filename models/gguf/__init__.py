"""The GGUF file: header, metadata, and its tensors, as bytes and decoded."""
