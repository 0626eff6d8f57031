"""Two devices whose look no intensity augmentation guesses, each at two strengths; beside `devices.HOME_OCT`.

`swept_source`  1060 nm, swept source: deep choroid and a bright sclera (Unterhuber et al., Opt. Express 13:3252, 2005),
                dim nerve fibres, whose scattering falls with wavelength, roll-off of a few dB over 2 to 3 mm (Potsaid
                et al., Opt. Express 18:20029, 2010), fringes of the reference arm, a display of dark on bright.
`polarised`     one polarisation detected, full range, hand held: retardation of cornea, nerve fibres and sclera (0.1 to
                0.4 degrees per um: Cense et al., Opt. Lett. 27:1610, 2002), which the pigment epithelium scrambles
                (Pircher et al., Prog. Retin. Eye Res. 30:431, 2011), the conjugate image (Leitgeb et al., Opt. Lett.
                28:2201, 2003), floaters and vessels, motion between groups of A-scans.

Ranges are plausible, chosen by physics and difficulty, and were fixed before any method was trained on them. They are
NOT calibrated on any image. The strong form of each doubles what the first one does.
"""

from __future__ import annotations

import math
from dataclasses import replace

from unicorn_monai.simulation.devices import HOME_OCT, SPECTRALIS, Device
from unicorn_monai.simulation.effects import (
    Choroid,
    Contrast,
    Fringes,
    Mirror,
    Retardation,
    RollOff,
    Shadows,
    Steps,
)

_DEGREE = math.pi / 180


def swept_source(strength: float, name: str) -> Device:
    """The long-wavelength device; ``strength`` scales what differs from 870 nm."""
    layers = {
        1: (-5.0, -2.5),
        2: (0.5, 2.0),
        3: (-1.0, 1.0),
        5: (1.0, 3.0),
        6: (1.0, 3.0),
        7: (-3.0, -1.0),
        8: (-2.5, -0.5),
    }
    return replace(
        SPECTRALIS,
        name=name,
        axial_fwhm_um=(9.0, 13.0),
        lateral_fwhm_um=(20.0, 30.0),
        looks=(1, 2),
        frames=(2, 8),
        noise_db=(-22.0, -16.0),
        haze=(0.0, 0.01),
        column_gain_db=(0.2, 0.8),
        fixed_pattern=(0.01, 0.03),
        black_percentile=(2.0, 10.0),
        white_percentile=(99.3, 99.9),
        subtract_noise=False,
        logarithmic=True,
        effects=(
            Contrast({label: (strength * low, strength * high) for label, (low, high) in layers.items()}),
            Choroid((-4.0, -1.0), (6.0 / strength, 14.0 / strength), (180.0, 300.0), (2.0 * strength, 4.0 * strength)),
            RollOff((2.0 * strength, 5.0 * strength)),
            Fringes((-9.0, -5.0), (0.13, 0.41, 0.77) if strength < 2 else (0.08, 0.13, 0.29, 0.41, 0.63, 0.77, 0.91)),
        ),
        inverted=True,
    )


def polarised(strength: float, name: str) -> Device:
    """The hand-held device that detects one polarisation; ``strength`` scales loss, shadows, mirror image and steps."""
    return replace(
        HOME_OCT,
        name=name,
        looks=(1, 3),
        frames=(2, 6),
        noise_db=(-20.0, -14.0),
        haze=(0.0, 0.02),
        vignette_db=(0.0, 3.0),
        column_gain_db=(0.4 * strength, 1.2 * strength),  # stripes
        row_gain_db=(0.0, 0.1),
        row_jitter_um=(0.0, 0.0),
        depth_jitter_um=(0.0, 0.0),
        fixed_pattern=(0.05 * strength, 0.12 * strength),
        saturated_line=0.0,
        effects=(
            Retardation(
                mixed=(0.4 * strength, 0.49 * strength),
                start=(0.0, math.pi),
                slope=(0.2 * strength, 0.7 * strength),
                rad_um=(0.1 * _DEGREE, 0.4 * _DEGREE),
                below_rad_um=(0.2 * _DEGREE, 0.6 * _DEGREE),
            ),
            Shadows((1, 1 + round(strength)), (4.0 * strength, 8.0 * strength), (80.0, 350.0), vitreous=True),
            Shadows((2, 3 + round(strength)), (4.0 * strength, 9.0 * strength), (15.0, 45.0), vitreous=False),
            Mirror((16.0 / strength, 24.0 / strength), (0.35, 0.65)),
            Steps((2, 2 + 2 * round(strength)), (6.0 * strength, 14.0 * strength)),
        ),
    )


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        SPECTRALIS,
        HOME_OCT,
        swept_source(1.0, "swept_source"),
        swept_source(2.0, "swept_source_strong"),
        polarised(1.0, "polarised"),
        polarised(2.0, "polarised_strong"),
    )
}
