"""CPU kernels of a network: products over a file's blocks and all layers in one call, in C++.

The sources lie beside this file; `network.cpp` includes the rest, and vectors,
threads and tiers from the kernels of the cache.
"""
