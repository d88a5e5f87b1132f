"""The chat behind the screen: its state, its model, its answers."""
