"""What a network gets from `update_and_fetch`: decoded tokens, or what leads back to the cache."""
