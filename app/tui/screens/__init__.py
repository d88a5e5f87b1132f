"""The chat's screens, one a file."""
