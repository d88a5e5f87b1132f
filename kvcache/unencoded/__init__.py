"""Caches that encode nothing: one sequence, or many over shared pages."""
