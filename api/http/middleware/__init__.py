"""Pure ASGI middlewares, one concern a file. The outermost is named first in :mod:`api.app`."""
