"""Native CPU kernels: codes, attention and the threads they run on; C++ compiled at first use.

The sources lie beside this file: `operations.cpp` is called, and what takes a compiler long is in
files of its own, which are compiled side by side.
"""
