"""What every program needs and no method: files, errors, weights, networks, processes, the terminal."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
