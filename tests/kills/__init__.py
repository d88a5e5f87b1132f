"""Programs that are ended at a random moment, and what they leave behind.

    python -m tests.kills [STAGE ...] [--kills N] [--record FILE]

`stages.py` is what runs and what must then hold; `killing.py` starts, kills and looks.
"""
