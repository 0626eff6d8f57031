"""UnIACorN, the uncertainty-aware ControlNet: labelled synthetic images of a device nobody has labelled."""

__version__ = "0.1.0"
