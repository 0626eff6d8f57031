"""Many shifts between two domains, each an ordinary experiment: how they are made and what runs on them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
