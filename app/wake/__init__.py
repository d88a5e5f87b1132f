"""Encoded caches of chats on disk, from which a chat wakes where it was."""
