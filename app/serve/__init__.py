"""`python -m app serve`: mlx-lm's OpenAI-compatible server over ember's models and caches.

HTTP, the shape of requests and the batch are mlx-lm's (`APIHandler`, `ResponseGenerator`,
`BatchGenerator`, `LRUPromptCache`). Here is what ember does otherwise:

    budget.py          how many sequences a budget holds at once
    model_provider.py  the one model, from ember's loader
    bodies.py          what a request may say
    refusal.py         what becomes an error of OpenAI's shape
    handler.py         one connection
    generator.py       requests to answers, between connections and the one thread that computes
    row.py             one request among those computed together, and its text
    running.py         the rows that are computed together
    server_figures.py  what `/stats` says
    live_view.py       the same on a terminal
    serving.py         a server from its start to its end
"""
