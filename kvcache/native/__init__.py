"""Native CPU kernels: codes, attention and the threads they run on; C++ compiled at first use.

The sources lie beside this file: `operations.cpp` is called; what is computed with codes is
compiled into libraries of its own, for those that there are.
"""
