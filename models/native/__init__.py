"""CPU kernels of a network: products over a file's blocks and all layers in one call, in C++.

The sources lie beside this file: `network.cpp`, what is computed with each type in
`types_*.cpp`, and headers; vectors, threads and tiers are those of the kernels of the cache.
"""
