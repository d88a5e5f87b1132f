"""A process that answers for long: its memory, its numbers and its pace stay as they were."""
