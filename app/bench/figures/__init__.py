"""Formulas, statistics and published numbers; nothing is measured here."""
