"""Chats and where they are kept. Knows neither MLX nor a screen."""
