"""Random misuse of the full-screen chat by two windows at once: `python -m tests.app.monkey`."""
