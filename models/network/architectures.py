"""The architectures that ember runs, by their names in files."""

ARCHITECTURES = {"llama": "Llama, TinyLlama, SmolLM2, Mistral"}
