"""Inputs that nobody meant: what reads foreign bytes is given mutated ones, without end.

    python -m tests.fuzz [TARGET ...] [--seconds N]

`targets.py` is what reads, and of what; `mutation.py` changes bytes; `limits.py` is what one
input may cost. With atheris (`pip install --group fuzz`) coverage guides what is tried, else
chance does. An input that ends otherwise than by an answer or a refusal is kept, and named; put
into `corpus/TARGET`, it is tried again by every test run.
"""
