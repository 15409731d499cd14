"""The person in a portrait, and how it was taken.

A `Person` is what stays the same from picture to picture (head, features, hair, the grain of the
skin). A `Shot` is what changes (pose, light, expression, background).
Lengths are in face units: origin between the eyes and the mouth, `u` to the right, `v` down, the
chin at v = 1; one unit is about 50 px. Colours are RGB in [0, 1], [3, 1, 1] float32, as the
painting in `portraits` is done channel by channel.
"""

import dataclasses

import numpy as np

# From very light to very dark, RGB in [0, 1].
SKIN_TONES = np.array(
    [
        [0.96, 0.83, 0.75],
        [0.90, 0.72, 0.60],
        [0.78, 0.58, 0.44],
        [0.60, 0.42, 0.31],
        [0.40, 0.27, 0.20],
    ]
)
HAIR_COLOURS = np.array(
    [
        [0.08, 0.07, 0.07],
        [0.22, 0.14, 0.09],
        [0.42, 0.27, 0.14],
        [0.75, 0.60, 0.35],
        [0.60, 0.58, 0.56],
    ]
)
IRIS_COLOURS = np.array(
    [[0.25, 0.15, 0.08], [0.35, 0.28, 0.12], [0.30, 0.42, 0.30], [0.35, 0.48, 0.62]]
)


@dataclasses.dataclass(frozen=True)
class Person:
    """What makes someone recognisable."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    head_width: float  # half of it
    crown: float  # how far the skull reaches above the origin
    jaw: float  # exponent: 1.6 pointed, 3.5 square
    eye_x: float
    eye_y: float
    eye_width: float
    eye_height: float
    eye_slant: float
    brow_lift: float
    brow_width: float
    brow_slant: float
    nose_y: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    lip_height: float
    hairline: float  # v of its middle
    parting: float
    hair_style: str  # bald, short, long
    beard: float  # 0 none, below 0.5 stubble, up to 1 full
    glasses: bool
    freckles: float
    wrinkles: float
    grain_px: float  # scale of the skin's relief
    grain_height: float


@dataclasses.dataclass(frozen=True)
class Shot:
    """What varies by picture. `light` points from the face to the lamp: (right, down, nearer)."""

    scale_px: float  # pixels in a face unit
    centre_px: tuple[float, float]
    roll: float  # radians
    yaw: float  # -1 to 1
    smile: float
    mouth_open: float
    gaze: float
    light: tuple[float, float, float]
    ambient: float
    tint: np.ndarray
    clothes: np.ndarray
    background: str  # plain, clouds, stripes, tiles, bokeh
    near: np.ndarray  # the two colours of the background
    far: np.ndarray


def sample_person(rng: np.random.Generator) -> Person:
    """A random person; the same generator state gives the same one."""

    def between(low, high):
        return float(rng.uniform(low, high))

    tone = between(0, len(SKIN_TONES) - 1.001)
    skin = _between_colours(SKIN_TONES, tone) * rgb(*rng.uniform(0.95, 1.04, 3))
    hair_tone = between(0, 1.4) if tone > 2.5 else between(0, len(HAIR_COLOURS) - 1.001)
    iris_tone = between(0, 0.5) if tone > 2.5 else between(0, len(IRIS_COLOURS) - 1.001)
    return Person(
        skin=skin,
        hair=_between_colours(HAIR_COLOURS, hair_tone) * rgb(*rng.uniform(0.85, 1.15, 3)),
        iris=_between_colours(IRIS_COLOURS, iris_tone),
        lips=skin * rgb(0.92, 0.66, 0.66) * between(0.85, 1.1),
        head_width=between(0.68, 0.84),
        crown=between(1.0, 1.15),
        jaw=between(1.7, 3.4),
        eye_x=between(0.28, 0.36),
        eye_y=between(-0.18, -0.06),
        eye_width=between(0.12, 0.17),
        eye_height=between(0.045, 0.085),
        eye_slant=between(-0.15, 0.2),
        brow_lift=between(0.15, 0.23),
        brow_width=between(0.02, 0.05),
        brow_slant=between(-0.2, 0.25),
        nose_y=between(0.22, 0.34),
        nose_width=between(0.09, 0.15),
        mouth_y=between(0.5, 0.62),
        mouth_width=between(0.2, 0.31),
        lip_height=between(0.04, 0.085),
        hairline=between(-0.72, -0.5),
        parting=between(-0.5, 0.5),
        hair_style=str(rng.choice(["bald", "short", "short", "long", "long"])),
        beard=max(0.0, between(-1.2, 1.0)),
        glasses=bool(rng.random() < 0.2),
        freckles=max(0.0, between(-1.0, 0.5)),
        wrinkles=max(0.0, between(-0.5, 1.0)),
        grain_px=between(0.7, 1.5),
        grain_height=between(0.8, 1.2),
    )


def sample_shot(rng: np.random.Generator) -> Shot:
    """A random shot."""
    aside, above = rng.uniform(0.6, 0.9), rng.uniform(-0.2, 1.0)  # of 1; radians: lamps hang
    light = (
        rng.choice([-1, 1]) * aside * np.cos(above),
        -aside * np.sin(above),
        np.sqrt(1 - aside**2),
    )
    near = rng.uniform(0.2, 0.9) + rng.uniform(-0.2, 0.2, 3)
    far = near + rng.uniform(-0.35, 0.35, 3)
    return Shot(
        scale_px=float(rng.uniform(44, 54)),
        centre_px=tuple((64 + rng.uniform(-5, 5, 2)).tolist()),
        roll=float(rng.uniform(-0.2, 0.2)),
        yaw=float(rng.uniform(-1, 1)),
        smile=float(rng.uniform(-0.3, 1)),
        mouth_open=max(0.0, float(rng.uniform(-1, 1))),
        gaze=float(rng.uniform(-1, 1)),
        light=tuple(map(float, light)),
        ambient=float(rng.uniform(0.35, 0.55)),
        tint=1 + float(rng.uniform(-0.06, 0.06)) * rgb(1, 0.1, -1),
        clothes=rgb(*rng.uniform(0.05, 0.9, 3)),
        background=str(rng.choice(["plain", "clouds", "stripes", "tiles", "bokeh"])),
        near=rgb(*near.clip(0.05, 0.95)),
        far=rgb(*far.clip(0.05, 0.95)),
    )


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def _between_colours(colours: np.ndarray, position: float) -> np.ndarray:
    low = int(position)
    mixed = colours[low] + (position - low) * (colours[low + 1] - colours[low])
    return rgb(*mixed)
