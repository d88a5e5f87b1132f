"""What goes to and comes from the terminal itself."""
