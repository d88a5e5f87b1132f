"""One model over several processes, as `mlx.launch` starts them: rank 0 leads, others follow."""
