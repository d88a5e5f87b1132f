"""What is measured: ember, llama.cpp and mlx-lm, each in a process of its own."""
