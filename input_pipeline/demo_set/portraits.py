"""Paints a person in a shot, layer over layer from the background to the front.

Everything is drawn on one grid of face coordinates (see `people`), `u` and `v` [128, 128] float32.
A shape is a function of them that is above 0 inside; a mask is such a function with soft edges.
While painting, a picture is [3, 128, 128] float32 RGB.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline.demo_set.people import Person, Shot, rgb

SIZE_PX = 128


class Portrait(NamedTuple):
    """A picture before camera effects, with the landmarks and region for a face swap."""

    image: np.ndarray  # [128, 128, 3] float32 RGB in [0, 1]
    landmarks: np.ndarray  # [8, 2] float32 px (x, y): eyes' outer and inner ends, nose, mouth, chin
    region: np.ndarray  # [128, 128] float32: 1 within the facial region, brows to chin


def render(person: Person, shot: Shot, rng: np.random.Generator) -> Portrait:
    """Renders a person in a shot; `rng` draws the rest: strands, pores, weave."""
    x, y = np.meshgrid(np.arange(SIZE_PX, dtype=np.float32), np.arange(SIZE_PX, dtype=np.float32))
    dx, dy = x - shot.centre_px[0], y - shot.centre_px[1]
    cos, sin = math.cos(shot.roll) / shot.scale_px, math.sin(shot.roll) / shot.scale_px
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    noise = rng.standard_normal((4, SIZE_PX, SIZE_PX), dtype=np.float32)

    image = _background(shot, x, y, rng)
    image = _body(image, person, shot, u, v, noise)
    image = _head(image, person, shot, u, v, noise)
    region = _soft(_facial_region(person, shot, u, v), shot.scale_px / 2)
    image = np.clip(image * shot.tint, 0, 1).transpose(1, 2, 0)
    return Portrait(np.ascontiguousarray(image), _landmarks(person, shot), region)


def _landmarks(person: Person, shot: Shot) -> np.ndarray:
    """Where a landmark detector would find them: [8, 2] float32 px (x, y)."""
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


def _soft(level: np.ndarray, sharpness: float) -> np.ndarray:
    """A mask with anti-aliased edges: 1 where `level` > 0, over about 1 / sharpness."""
    mask = sharpness * level
    mask += 0.5
    return np.clip(mask, 0, 1, out=mask)


def _bump(u: np.ndarray, v: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.exp(-((u / width) ** 2 + (v / height) ** 2))


def _paint(image: np.ndarray, mask: np.ndarray, colour) -> np.ndarray:
    """Lays `colour` over `image` by `mask` [H, W]."""
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
    """Hair behind the head, neck and shoulders."""
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
    """The relief of the skin: noise in one octave, of standard deviation 1."""
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
    """Above 0 in the region that a face swap replaces: from above the brows to the chin."""
    turn = 0.1 * shot.yaw
    middle = 0.5 * (person.eye_y - 0.3 + 0.9)
    half = 0.9 - middle
    return 1 - ((u - turn) / (0.8 * person.head_width)) ** 2 - np.abs((v - middle) / half) ** 2.5


class _Face(NamedTuple):
    """Coordinates for drawing the features, [128, 128] each; the face is symmetrical."""

    u: np.ndarray
    v: np.ndarray
    across: np.ndarray  # u, from the middle of the face, which turns with the head
    aside: np.ndarray  # its absolute value
    nose_u: np.ndarray  # the nose stands out, so it turns further
    eye_u: np.ndarray  # from the nearer eye, outwards
    eye_v: np.ndarray
    mouth_v: np.ndarray  # from the line between the lips
    spots: np.ndarray  # noise, for freckles and stubble
    sharp: float  # of a mask's edge: one over two pixels


def _head(image, person: Person, shot: Shot, u, v, noise) -> np.ndarray:
    """Ears, skin with its relief under the lamp, features, beard, hair, glasses."""
    across = u - 0.1 * shot.yaw
    aside = np.abs(across)
    eye_u = aside - person.eye_x
    smile = shot.smile * 0.9 * (across**2 - 0.4 * person.mouth_width**2)
    face = _Face(
        u=u,
        v=v,
        across=across,
        aside=aside,
        nose_u=u - 0.2 * shot.yaw,
        eye_u=eye_u,
        eye_v=v - person.eye_y + person.eye_slant * eye_u,
        mouth_v=v - person.mouth_y + smile,
        spots=cv2.GaussianBlur(noise[3], (0, 0), 0.8),
        sharp=shot.scale_px / 2,
    )
    lit = _lit(person, shot, face, _pores(noise[1], person, shot))
    fullness = 1 - 0.7 * (across / person.mouth_width) ** 2
    lips = _soft(person.lip_height * fullness - np.abs(face.mouth_v), 20)
    lips = lips * _soft(person.mouth_width - aside, face.sharp)
    gape = (0.012 + 0.06 * shot.mouth_open) * (1 - (across / person.mouth_width) ** 2)
    opening = _soft(gape - np.abs(face.mouth_v), face.sharp) * (aside < person.mouth_width)

    skin = _paint(_complexion(person, face, noise[2]), lips, person.lips)
    ears = 1 - ((np.abs(u) - person.head_width) / 0.11) ** 2 - ((v - 0.05) / 0.2) ** 2
    head = np.maximum(_soft(_outline(person, u, v), face.sharp / 2), _soft(ears, 2.5))
    image = _paint(image, head, skin * lit)
    teeth = 0.45 * _soft(-face.mouth_v, 30) * (shot.mouth_open > 0.25)
    image = _paint(image, 0.9 * opening, rgb(0.25, 0.08, 0.08) + teeth * lit)
    nostril = np.abs(face.nose_u) - 0.55 * person.nose_width
    image = image * (1 - 0.7 * _bump(nostril, v - person.nose_y, 0.035, 0.02))
    image = _eyes(image, person, shot, face, lit)
    shaven = np.maximum(lips, opening)
    image = _hair(image, person, face, head * (1 - shaven), lit, noise[0])
    return _glasses(image, person, face) if person.glasses else image


def _lit(person: Person, shot: Shot, face: _Face, pores: np.ndarray) -> np.ndarray:
    """Light reflected by every point of the head: Lambert's law on its relief."""
    nx, ny = face.u / (1.1 * person.head_width), face.v / 1.2  # an ellipsoid
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0.05, 1))
    ridge = np.clip((face.v - person.eye_y) / (person.nose_y - person.eye_y), 0, 1)
    nose = _bump(face.nose_u, 0, person.nose_width * (0.5 + 0.5 * ridge), 1)
    cheek = _bump(face.aside - 0.42, face.v - 0.3, 0.2, 0.2)
    socket = _bump(face.eye_u, face.eye_v, 0.2, 0.13)
    chin = _bump(face.across, face.v - 0.85, 0.2, 0.12)
    lips = _bump(face.across, face.mouth_v, 1.1 * person.mouth_width, 1.6 * person.lip_height)
    fold = face.aside - 0.2 - 0.35 * (face.v - person.nose_y + 0.1)  # from nose to mouth
    frown = np.sin(60 * face.v) * _bump(face.across, face.v + 0.45, 0.4, 0.14)
    height = 0.16 * nose * ridge * _soft(person.nose_y + 0.04 - face.v, 8)
    height += 0.05 * cheek - 0.07 * socket + 0.05 * chin + 0.03 * lips
    height -= 0.03 * person.wrinkles * _bump(fold, face.v - 0.4, 0.04, 0.2)
    height += 0.004 * person.wrinkles * frown
    height = height * shot.scale_px + 0.16 * pores
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    light_x, light_y, light_z = shot.light
    lambert = (nx - slope_x) * light_x + (ny - slope_y) * light_y + nz * light_z
    lambert = lambert / np.sqrt(1 + slope_x**2 + slope_y**2)
    return shot.ambient + 0.75 * np.clip(lambert, 0, 1.4)


def _complexion(person: Person, face: _Face, noise: np.ndarray) -> np.ndarray:
    """Colour of the unlit skin: blotches, red cheeks, freckles."""
    blotches = cv2.GaussianBlur(noise, (0, 0), 5) * 5
    cheeks = _bump(face.aside - 0.42, face.v - 0.3, 0.2, 0.2)
    freckles = _soft(face.spots - 0.55, 4) * _bump(face.aside - 0.2, face.v - 0.15, 0.4, 0.25)
    skin = person.skin * (1 + 0.03 * blotches * rgb(0.3, 1, 1))
    skin = skin * (1 - 0.1 * cheeks * rgb(-0.2, 1, 1))
    return skin * (1 - person.freckles * freckles * rgb(0.3, 0.45, 0.5))


def _eyes(image, person: Person, shot: Shot, face: _Face, lit) -> np.ndarray:
    """White, iris, pupil, the glint of the lamp, lashes."""
    within = np.abs(face.eye_u) < person.eye_width
    lid = person.eye_height * (1 - (face.eye_u / person.eye_width) ** 2)
    side = np.sign(face.across)  # both eyes look the same way, so not mirrored
    away = np.hypot(face.eye_u - 0.04 * side * shot.gaze, face.eye_v)
    glint_u = side * (0.04 * shot.gaze + 0.035 * shot.light[0])
    glint = np.hypot(face.eye_u - glint_u, face.eye_v - 0.035 * shot.light[1])
    eye = rgb(0.93, 0.92, 0.90) * np.clip(0.4 + 0.6 * lit, 0, 1)
    eye = _paint(eye, _soft(0.072 - away, face.sharp), person.iris * 0.9)
    eye = _paint(eye, _soft(0.033 - away, face.sharp), rgb(0.03, 0.03, 0.03))
    eye = _paint(eye, _soft(0.02 - glint, face.sharp), rgb(1, 1, 1))
    image = _paint(image, _soft(lid - np.abs(face.eye_v), face.sharp) * within, eye)
    return image * (1 - 0.7 * _bump(0, face.eye_v + lid, 1, 0.022) * within)


def _hair(image, person: Person, face: _Face, growth, lit, noise) -> np.ndarray:
    """Brows, beard (where `growth` is 1) and the hair over the forehead."""
    u, v = face.u, face.v
    strands = cv2.GaussianBlur(noise, (0, 0), 0.7, sigmaY=3)
    hair = person.hair * ((0.45 + 0.6 * lit) * (1 + 0.8 * strands))
    slant = person.brow_slant * face.eye_u - 1.5 * face.eye_u**2
    brow = _soft(
        person.brow_width - np.abs(v - person.eye_y + person.brow_lift + slant), face.sharp
    )
    brow = brow * _soft(1.35 * person.eye_width - np.abs(face.eye_u), face.sharp)
    image = _paint(image, 0.8 * brow, hair * 0.8)

    beard = _soft(np.hypot(face.across / 0.62, (v - 0.25) / 0.55) - 1, 4) * _soft(v - 0.3, 6)
    beard = beard + _bump(face.across, face.mouth_v + 0.11, 0.25, 0.03)
    full = person.beard > 0.5
    coverage = person.beard if full else person.beard * (0.5 + 0.8 * face.spots)
    image = _paint(image, np.clip(beard * coverage, 0, 0.9) * growth, hair)

    if person.hair_style == "bald":
        return image
    thick = person.head_width + 0.02 + 0.06 * np.clip(-2.5 * v, 0, 1)
    cap = 1 - (u / thick) ** 2 - (np.clip(-v, 0, None) / (person.crown + 0.1)) ** 2
    line = person.hairline + 0.7 * np.abs(u - 0.5 * person.parting) ** 2.2 / person.head_width
    fall = 0.35 if person.hair_style == "long" else 0.0
    inside = np.minimum(cap, 2 * (np.minimum(line, fall) - v + 0.04 * strands))
    return _paint(image, _soft(inside, face.sharp / 3), hair)


def _glasses(image, person: Person, face: _Face) -> np.ndarray:
    """Dark rims halfway between a rectangle and an ellipse, and a bridge."""
    u, v = face.eye_u / 0.22, (face.v - person.eye_y) / 0.16
    lens = 0.6 * np.maximum(np.abs(u), np.abs(v)) + 0.4 * np.hypot(u, v) - 1
    bridge = _soft(0.016 - np.abs(face.v - person.eye_y + 0.05), face.sharp)
    bridge = bridge * (face.aside < person.eye_x - 0.2)
    rims = _soft(0.13 - np.abs(lens), 6)
    return _paint(image, np.maximum(rims, bridge), rgb(0.08, 0.07, 0.07))
