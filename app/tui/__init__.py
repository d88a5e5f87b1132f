"""The full-screen chat. Knows no MLX: all it shows comes through `service.ModelService`."""
