"""Simulated retinas seen by two devices: layer geometry (`retina`), image formation (`devices`), B-scans (`scans`)."""

from unicorn_monai.simulation.devices import DEVICES, HOME_OCT, SPECTRALIS, Device
from unicorn_monai.simulation.retina import LABELS
from unicorn_monai.simulation.scans import Scan, simulate, simulate_scan

__all__ = ["DEVICES", "HOME_OCT", "LABELS", "SPECTRALIS", "Device", "Scan", "simulate", "simulate_scan"]
