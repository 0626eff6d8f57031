"""Simulated retinas seen by several devices: layers (`retina`), image formation (`devices`), B-scans (`scans`)."""

from unicorn_monai.simulation.devices import HOME_OCT, SPECTRALIS, Device
from unicorn_monai.simulation.other_devices import DEVICES
from unicorn_monai.simulation.retina import LABELS
from unicorn_monai.simulation.scans import Scan, simulate, simulate_scan

__all__ = ["DEVICES", "HOME_OCT", "LABELS", "SPECTRALIS", "Device", "Scan", "simulate", "simulate_scan"]
