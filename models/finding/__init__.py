"""Models by name: where they are, and how they get here."""
