"""Native CPU kernels: codes, attention and the threads they run on; C++ compiled at first use.

The sources lie beside this file; `operations.cpp` includes the rest.
"""
