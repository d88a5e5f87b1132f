"""mlx-lm's server with our caches: what it says of a model that they do not fit."""

import logging

from mlx_lm import server

from kvcache.errors import CacheError


def load_default(self: server.ModelProvider) -> None:
    """Load the server's model, in place of `ModelProvider.load_default`.

    A model that is refused is named in the log. mlx-lm would end the only thread that answers,
    and then serve on; so it asks for the model again with each request, which is told why.
    """
    try:
        stock_load_default(self)
    except CacheError as error:
        logging.error("this model cannot be served: %s", error)


stock_load_default = server.ModelProvider.load_default
