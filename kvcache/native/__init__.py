"""Native CPU kernels: quantized products and attention in C++, compiled at first use.

The sources lie beside this file; `operations.cpp` includes the rest.
"""
