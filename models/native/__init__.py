"""CPU kernels of a network: products over a file's blocks and all layers in one call, in C++.

The sources lie beside this file: `network.cpp`, `type.cpp`, a library for each type of weights, and
headers; vectors, threads and tiers are those of the kernels of the cache.
"""
