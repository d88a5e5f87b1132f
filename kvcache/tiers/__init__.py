"""What a two-tier cache keeps, where it lies, and who sees it."""
