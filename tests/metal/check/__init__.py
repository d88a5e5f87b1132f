"""`make metal-check`: the GPU kernels on this machine's GPU, right or wrong, and how fast.

Everything else about them is tested without a GPU; this is the one command whose output
tells how they do on a real one. `rows.py` says what it gives, each section is a file,
and `run.py` takes them in turn, within a time, and keeps what was done.
"""
