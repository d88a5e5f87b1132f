"""Matrices of a file's blocks on a GPU: kernels on Metal and CUDA over the file's own bits."""
