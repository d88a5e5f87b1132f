"""Measurements: what ember does on this machine, beside what a user would pick instead.

Each case runs in a process of its own (`measure`), so that memory is its own and
no engine warms another's caches; `speed` puts the cases together.
"""
