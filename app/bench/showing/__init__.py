"""Tables, charts and documents of any section."""
