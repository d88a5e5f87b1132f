"""Text to lines of styled cells. Knows no widget and no chat."""
