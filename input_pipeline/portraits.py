"""Draws a portrait: a person, seen in one shot, as pixels.

A `Person` is what stays the same from picture to picture (head, features, hair, the grain of the
skin); a `Shot` is what does not (pose, light, expression, what stands behind). Everything is drawn
on one grid in the *face frame*: origin between the eyes and the mouth, `u` to the right, `v` down,
the chin at v = 1, so that one unit is about 50 px.
"""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

SIZE_PX = 128

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
    """What makes someone recognisable. Lengths in face units, colours [3, 1, 1] RGB in [0, 1]."""

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
    """What one picture adds. `light` points from the face to the lamp: (right, down, nearer)."""

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


class Portrait(NamedTuple):
    image: np.ndarray  # [128, 128, 3] float32 RGB in [0, 1]
    landmarks: np.ndarray  # [8, 2] float32 px (x, y): eyes' outer and inner ends, nose, mouth, chin
    region: np.ndarray  # [128, 128] float32: 1 within the facial region, brows to chin


def sample_person(rng: np.random.Generator) -> Person:
    """A person; the same generator state gives the same one."""

    def between(low, high):
        return float(rng.uniform(low, high))

    tone = between(0, len(SKIN_TONES) - 1.001)
    skin = _between_colours(SKIN_TONES, tone) * _rgb(*rng.uniform(0.95, 1.04, 3))
    hair_tone = between(0, 1.4) if tone > 2.5 else between(0, len(HAIR_COLOURS) - 1.001)
    iris_tone = between(0, 0.5) if tone > 2.5 else between(0, len(IRIS_COLOURS) - 1.001)
    return Person(
        skin=skin,
        hair=_between_colours(HAIR_COLOURS, hair_tone) * _rgb(*rng.uniform(0.85, 1.15, 3)),
        iris=_between_colours(IRIS_COLOURS, iris_tone),
        lips=skin * _rgb(0.92, 0.66, 0.66) * between(0.85, 1.1),
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
    """The circumstances of one picture."""
    aside, above = rng.uniform(0.6, 0.9), rng.uniform(-0.2, 1.4)  # of 1; radians: lamps hang
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
        tint=1 + float(rng.uniform(-0.06, 0.06)) * _rgb(1, 0.1, -1),
        clothes=_rgb(*rng.uniform(0.05, 0.9, 3)),
        background=str(rng.choice(["plain", "clouds", "stripes", "tiles", "bokeh"])),
        near=_rgb(*near.clip(0.05, 0.95)),
        far=_rgb(*far.clip(0.05, 0.95)),
    )


def render(person: Person, shot: Shot, rng: np.random.Generator) -> Portrait:
    """One person in one shot; `rng` draws what is neither: strands, pores, weave."""
    x, y = np.meshgrid(np.arange(SIZE_PX, dtype=np.float32), np.arange(SIZE_PX, dtype=np.float32))
    frame = _frame(person, shot)
    dx, dy = x - shot.centre_px[0], y - shot.centre_px[1]
    cos, sin = math.cos(shot.roll) / shot.scale_px, math.sin(shot.roll) / shot.scale_px
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    noise = rng.standard_normal((4, SIZE_PX, SIZE_PX), dtype=np.float32)

    image = _background(shot, x, y, rng)
    image = _body(image, person, shot, u, v, noise)
    image = _head(image, person, shot, u, v, noise)
    region = _soft(_facial_region(person, shot, u, v), shot.scale_px / 2)
    image = np.clip(image * shot.tint, 0, 1).transpose(1, 2, 0)
    return Portrait(np.ascontiguousarray(image), frame, region)


def _frame(person: Person, shot: Shot) -> np.ndarray:
    """Landmarks in pixels: where a landmark detector would put them."""
    turn = 0.1 * shot.yaw
    outer, inner = person.eye_x + person.eye_width, person.eye_x - person.eye_width
    points = [
        (turn - outer, person.eye_y),
        (turn - inner, person.eye_y),
        (turn + inner, person.eye_y),
        (turn + outer, person.eye_y),
        (2 * turn, person.nose_y),
        (turn - person.mouth_width, person.mouth_y),
        (turn + person.mouth_width, person.mouth_y),
        (0.5 * turn, 1.0),
    ]
    u, v = np.array(points).T * shot.scale_px
    cos, sin = np.cos(shot.roll), np.sin(shot.roll)
    return (np.stack([cos * u - sin * v, sin * u + cos * v], 1) + shot.centre_px).astype(np.float32)


def _rgb(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def _between_colours(colours: np.ndarray, position: float) -> np.ndarray:
    low = int(position)
    mixed = colours[low] + (position - low) * (colours[low + 1] - colours[low])
    return _rgb(*mixed)


def _soft(level: np.ndarray, sharpness: float) -> np.ndarray:
    """A mask with anti-aliased edges: 1 where `level` > 0, over about 1 / sharpness."""
    mask = sharpness * level
    mask += 0.5
    return np.clip(mask, 0, 1, out=mask)


def _bump(u: np.ndarray, v: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.exp(-((u / width) ** 2 + (v / height) ** 2))


def _paint(image: np.ndarray, mask: np.ndarray, colour) -> np.ndarray:
    """`colour` laid over `image` where `mask` [H, W] says."""
    painted = colour - image
    painted *= mask
    painted += image
    return painted


def _background(shot: Shot, x, y, rng: np.random.Generator) -> np.ndarray:
    """Wall, sky, street or lights out of focus; lit from the same side as the face."""
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(7, 20)
    along = (np.cos(angle) * x + np.sin(angle) * y).astype(np.float32)
    across = (np.cos(angle) * y - np.sin(angle) * x).astype(np.float32)
    if shot.background == "clouds":
        low = rng.uniform(0, 1, (6, 6)).astype(np.float32)
        high = rng.uniform(0, 1, (24, 24)).astype(np.float32)
        size = (SIZE_PX, SIZE_PX)
        mix = 0.7 * cv2.resize(low, size, interpolation=cv2.INTER_CUBIC)
        mix = mix + 0.3 * cv2.resize(high, size, interpolation=cv2.INTER_CUBIC)
    elif shot.background == "stripes":
        mix = _soft(np.sin(along * (2 * np.pi / pitch)), 1.0)
    elif shot.background == "tiles":
        row = np.floor(across / pitch)
        shift = along + 0.5 * pitch * 2 * (row % 2)
        edge = np.minimum(np.abs(across % pitch), np.abs(shift % (2 * pitch)))
        mix = 0.2 + 0.6 * _soft(edge - 1.2, 1.0)
    elif shot.background == "bokeh":
        mix = 0.2 * y / SIZE_PX
        for _ in range(7):
            cx, cy, radius = *rng.uniform(0, SIZE_PX, 2), rng.uniform(5, 14)
            mix = mix + rng.uniform(0.2, 0.6) * _soft(radius - np.hypot(x - cx, y - cy), 0.4)
    else:
        mix = y / SIZE_PX
    grain = cv2.GaussianBlur(
        rng.standard_normal((SIZE_PX, SIZE_PX), dtype=np.float32), (0, 0), rng.uniform(0.6, 1.6)
    )
    mix = np.clip(mix, 0, 1) + rng.uniform(0, 0.3) * grain
    lit = 1 + 0.25 * (shot.light[0] * (x - 64) + shot.light[1] * (y - 64)) / 64
    return (shot.near + mix * (shot.far - shot.near)) * lit


def _body(image, person: Person, shot: Shot, u, v, noise) -> np.ndarray:
    """Hair that falls behind, neck and shoulders."""
    sharp = shot.scale_px / 2
    if person.hair_style == "long":
        wide = person.head_width + 0.14
        mask = _soft(1 - np.abs(u / wide) ** 2.5 - np.abs((v - 0.1) / 1.35) ** 3, sharp / 2)
        strands = cv2.GaussianBlur(noise[0], (0, 0), 0.7, sigmaY=5)
        shade = 0.75 + 0.6 * strands + 0.2 * shot.light[0] * u
        image = _paint(image, mask, person.hair * shade)
    turn = 0.05 * shot.yaw
    lit = shot.ambient + 0.45 * np.clip(0.6 + shot.light[0] * (u - turn) / 0.45, 0, 1.5)
    neck = _soft(0.62 * person.head_width - np.abs(u - turn), sharp) * (v > 0.5)
    shadow = 1 - 0.3 * _bump(u, v - 1.0, 0.6, 0.25)
    grain = 1 + 0.06 * _pores(noise[1], person, shot)
    image = _paint(image, neck, person.skin * (lit * shadow * grain))
    weave = 1 + 0.3 * cv2.GaussianBlur(noise[2], (0, 0), 1.0)
    lit = shot.ambient + 0.45 * np.clip(0.6 + shot.light[0] * u / 1.4, 0, 1.5)
    collar = _soft(v - 1.22 - 0.5 * np.abs(u) * (np.abs(u) < 0.4) + 0.12 * (np.abs(u) - 0.4), sharp)
    shoulders = collar * _soft(1 - (u / 1.7) ** 2 - ((v - 2.2) / 1.05) ** 2, sharp)
    return _paint(image, shoulders, shot.clothes * (lit * weave))


def _pores(noise: np.ndarray, person: Person, shot: Shot) -> np.ndarray:
    """The relief of the skin: noise in one octave, of unit deviation."""
    sigma = person.grain_px * shot.scale_px / 49
    band = cv2.GaussianBlur(noise, (0, 0), sigma) - cv2.GaussianBlur(noise, (0, 0), 1.6 * sigma)
    return band * (person.grain_height / band.std())


def _outline(person: Person, u, v) -> np.ndarray:
    """Above 0 within the head: an ellipse for the skull, a squarer curve for the jaw."""
    start = 0.1
    skull = ((v - start) / (person.crown + start)) ** 2
    jaw = (np.clip(v - start, 0, None) / (1 - start)) ** person.jaw
    return 1 - (u / person.head_width) ** 2 - np.where(v < start, skull, jaw)


def _facial_region(person: Person, shot: Shot, u, v) -> np.ndarray:
    """Above 0 in what a face swap replaces: from over the brows to the chin, within the cheeks."""
    turn = 0.1 * shot.yaw
    middle = 0.5 * (person.eye_y - 0.3 + 0.9)
    half = 0.9 - middle
    return 1 - ((u - turn) / (0.8 * person.head_width)) ** 2 - np.abs((v - middle) / half) ** 2.5


def _head(image, person: Person, shot: Shot, u, v, noise) -> np.ndarray:
    """Ears, skin with its relief under the lamp, features, beard, hair, glasses."""
    sharp = shot.scale_px / 2
    lx, ly, lz = shot.light
    f = u - 0.1 * shot.yaw  # the features turn with the head
    side = np.sign(f)
    a = np.abs(f)
    eye_u, eye_v = a - person.eye_x, v - person.eye_y + person.eye_slant * (a - person.eye_x)
    mouth_v = v - person.mouth_y + shot.smile * 0.9 * (f**2 - 0.4 * person.mouth_width**2)

    # Shape: an ellipsoid, plus what stands out from it. One Sobel lights nose, lips and pores.
    nx, ny = u / (1.1 * person.head_width), v / 1.2
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0.05, 1))
    nose_u = u - 0.2 * shot.yaw
    ridge = np.clip((v - person.eye_y) / (person.nose_y - person.eye_y), 0, 1)
    height = 0.16 * _bump(nose_u, 0, person.nose_width * (0.5 + 0.5 * ridge), 1) * ridge
    height = height * _soft(person.nose_y + 0.04 - v, 8)
    height = height + 0.05 * _bump(a - 0.42, v - 0.3, 0.2, 0.2)
    height = height - 0.07 * _bump(eye_u, eye_v, 0.2, 0.13)
    height = height + 0.05 * _bump(f, v - 0.85, 0.2, 0.12)
    height = height + 0.03 * _bump(f, mouth_v, 1.1 * person.mouth_width, 1.6 * person.lip_height)
    fold = a - 0.2 - 0.35 * (v - person.nose_y + 0.1)
    height = height - 0.03 * person.wrinkles * _bump(fold, v - 0.4, 0.04, 0.2)
    lines = np.sin(60 * v) * _bump(f, v + 0.45, 0.4, 0.14)
    height = height + 0.004 * person.wrinkles * lines
    height = height * shot.scale_px + 0.16 * _pores(noise[1], person, shot)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    lambert = (nx - slope_x) * lx + (ny - slope_y) * ly + nz * lz
    lit = shot.ambient + 0.75 * np.clip(lambert / np.sqrt(1 + slope_x**2 + slope_y**2), 0, 1.4)

    blotches = cv2.GaussianBlur(noise[2], (0, 0), 5) * 5
    skin = person.skin * (1 + 0.03 * blotches * _rgb(0.3, 1, 1))
    cheeks = _bump(a - 0.42, v - 0.3, 0.2, 0.2)
    skin = skin * (1 - 0.1 * cheeks * _rgb(-0.2, 1, 1))
    spots = cv2.GaussianBlur(noise[3], (0, 0), 0.8)
    freckled = person.freckles * _soft(spots - 0.55, 4) * _bump(a - 0.2, v - 0.15, 0.4, 0.25)
    skin = skin * (1 - freckled * _rgb(0.3, 0.45, 0.5))
    lips = _soft(
        person.lip_height
        - np.abs(mouth_v)
        - 0.7 * f**2 * person.lip_height / person.mouth_width**2,
        20,
    )
    lips = lips * _soft(person.mouth_width - a, sharp)
    skin = _paint(skin, lips, person.lips)

    ears = 1 - ((np.abs(u) - person.head_width) / 0.11) ** 2 - ((v - 0.05) / 0.2) ** 2
    head = np.maximum(_soft(_outline(person, u, v), sharp / 2), _soft(ears, 2.5))
    image = _paint(image, head, skin * lit)

    # Mouth, nostrils, eyes.
    gape = 0.012 + 0.06 * shot.mouth_open
    opening = _soft(gape * (1 - (f / person.mouth_width) ** 2) - np.abs(mouth_v), sharp)
    opening = opening * (a < person.mouth_width)
    teeth = 0.75 * _soft(-mouth_v, 30) * (shot.mouth_open > 0.25)
    image = _paint(image, 0.9 * opening, _rgb(0.25, 0.08, 0.08) + 0.6 * teeth * lit)
    nostril = _bump(np.abs(nose_u) - 0.55 * person.nose_width, v - person.nose_y, 0.035, 0.02)
    image = image * (1 - 0.7 * nostril)
    lid = person.eye_height * (1 - (eye_u / person.eye_width) ** 2)
    eye = _soft(lid - np.abs(eye_v), sharp) * (np.abs(eye_u) < person.eye_width)
    white = _rgb(0.93, 0.92, 0.90) * np.clip(0.4 + 0.6 * lit, 0, 1)
    away = np.hypot(eye_u - 0.04 * side * shot.gaze, eye_v)
    white = _paint(white, _soft(0.072 - away, sharp), person.iris * 0.9)
    white = _paint(white, _soft(0.033 - away, sharp), _rgb(0.03, 0.03, 0.03))
    glint = np.hypot(eye_u - side * (0.04 * shot.gaze + 0.035 * lx), eye_v - 0.035 * ly)
    white = _paint(white, _soft(0.02 - glint, sharp), _rgb(1, 1, 1))
    image = _paint(image, eye, white)
    lash = _bump(0, eye_v + lid, 1, 0.022) * (np.abs(eye_u) < person.eye_width)
    image = image * (1 - 0.7 * lash)

    # Hair: brows, beard, and what falls over the forehead.
    strands = cv2.GaussianBlur(noise[0], (0, 0), 0.7, sigmaY=3)
    hair = person.hair * ((0.45 + 0.6 * lit) * (1 + 0.8 * strands))
    arch = v - person.eye_y + person.brow_lift + person.brow_slant * eye_u - 1.5 * eye_u**2
    brow = _soft(person.brow_width - np.abs(arch), sharp) * _soft(
        1.35 * person.eye_width - np.abs(eye_u), sharp
    )
    image = _paint(image, 0.8 * brow, hair * 0.8)
    jaw = _soft(np.hypot(f / 0.62, (v - 0.25) / 0.55) - 1, 4) * _soft(v - 0.3, 6) + _bump(
        f, mouth_v + 0.11, 0.25, 0.03
    )
    coarse = person.beard if person.beard > 0.5 else person.beard * (0.5 + 0.8 * spots)
    image = _paint(image, np.clip(jaw * (1 - lips) * (1 - opening) * coarse, 0, 0.9) * head, hair)
    if person.hair_style != "bald":
        thick = person.head_width + 0.02 + 0.06 * np.clip(-2.5 * v, 0, 1)
        cap = 1 - (u / thick) ** 2 - (np.clip(-v, 0, None) / (person.crown + 0.1)) ** 2
        line = person.hairline + 0.7 * np.abs(u - 0.5 * person.parting) ** 2.2 / person.head_width
        fall = 0.35 if person.hair_style == "long" else 0.0
        inside = np.minimum(cap, 2 * (np.minimum(line, fall) - v + 0.04 * strands))
        image = _paint(image, _soft(inside, sharp / 3), hair)
    if person.glasses:
        lens = np.maximum(np.abs(eye_u) / 0.22, np.abs(v - person.eye_y) / 0.16)
        lens = (0.6 * lens + 0.4 * np.hypot(eye_u / 0.22, (v - person.eye_y) / 0.16)) - 1
        rim = _soft(0.13 - np.abs(lens), 6)
        bridge = _soft(0.016 - np.abs(v - person.eye_y + 0.05), sharp) * (a < person.eye_x - 0.2)
        image = _paint(image, np.maximum(rim, bridge), _rgb(0.08, 0.07, 0.07))
    return image
