"""A process that works for long, and what became of it: answers, clients of a server, chats."""
