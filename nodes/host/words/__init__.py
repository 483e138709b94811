"""Language models in the host: engines of words on sockets, and how nodes ask them."""
