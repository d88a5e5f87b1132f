"""The way from the chat to a model."""
