"""The network: configuration, weights, and the mathematics."""
