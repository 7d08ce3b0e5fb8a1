"""Images drawn by formula: no picture of anything is needed. Without TensorFlow.

Each kind is a row of `KINDS`: a function of a number of images, their shape and a
random generator. Dead leaves and spectra follow "Learning to see by looking at noise"
(Baradad et al., NeurIPS 2021); strokes and writing suit digits and letters, figures
things.
"""

import itertools
from collections.abc import Callable

import numpy as np
from scipy import ndimage

_AT_ONCE = 128  # images drawn together
_CURVE_POINTS = 24
_LINE_POINTS = 32
Drawing = Callable[[int, tuple[int, int, int], np.random.Generator], np.ndarray]


def draw(kind: str, count: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Images of one kind; the first ones do not depend on how many are drawn.

    Args:
        kind: a key of `KINDS`.
        count: n.
        shape: `(height, width, channels)`, channels 1 or 3.
        seed: of all that is random.

    Returns:
        `(n, height, width, channels)`, uint8, 0 to 255.
    """
    parts = []
    for start in range(0, count, _AT_ONCE):
        rng = np.random.default_rng([seed, list(KINDS).index(kind), start])
        parts.append(to_bytes(KINDS[kind](_AT_ONCE, shape, rng)))
    return np.concatenate(parts)[:count]


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images of any shape in [0, 1] as uint8, 0 to 255; what lies outside is cut."""
    return np.rint(np.clip(images, 0, 1) * 255).astype("uint8")


def strokes(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """One to three smooth strokes, mostly bright on black.

    Args:
        count: n.
        shape: `(height, width, channels)`.
        rng: draws curves, widths and colours.

    Returns:
        `(n, height, width, channels)` in [0, 1], as from all functions of `KINDS`.
    """
    y, x = _grid(shape)
    images = np.zeros((count, *shape), "float32")
    for stroke in range(3):
        # Cubic Bezier curves; a smaller spread of points bends them less.
        spread = rng.uniform(0.2, 0.55, (count, 1, 1))
        centre = rng.uniform(0.3, 0.7, (count, 1, 2))
        points = centre + spread * rng.uniform(-1, 1, (count, 4, 2))
        t = np.linspace(0, 1, _CURVE_POINTS)[None, :, None]
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        curve = sum(w * points[:, i : i + 1] for i, w in enumerate(weights))
        distance = _to_line(y, x, curve)
        width = rng.uniform(0.015, 0.085, (count, 1, 1))
        softness = rng.uniform(0.7, 1.5, (count, 1, 1)) / max(shape[:2])
        ink = np.clip((width - distance) / softness + 0.5, 0, 1)[..., None]
        drawn = rng.random(count) < (1.0, 0.6, 0.35)[stroke]
        colour = _colours(count, shape[2], rng, darkest=0.5)
        ink = ink * drawn[:, None, None, None]
        images = images * (1 - ink) + colour * ink
    return _grounded(images, rng)


def writing(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """One line of a pen or two, smooth or with corners, bright on black.

    Arguments and result as of `strokes`.
    """
    edge = rng.uniform(0.7, 1.5, (count, 1, 1)) / max(shape[:2])
    return _written(count, shape, rng, edge, pens=(0.02, 0.085), heights=(0.5, 0.95))


def soft_writing(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """The same by thick pens with soft edges, as in small pictures made larger.

    Arguments and result as of `strokes`.
    """
    edge = rng.uniform(0.1, 0.25, (count, 1, 1))
    return _written(count, shape, rng, edge, pens=(0.03, 0.13), heights=(0.7, 1.1))


def dead_leaves(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Shapes that cover each other, many small and few large, partly textured.

    Arguments and result as of `strokes`.
    """
    y, x = _grid(shape)
    images = np.broadcast_to(_colours(count, shape[2], rng), (count, *shape)).copy()
    # From one leaf on plain ground to a ground that is covered whole.
    leaves = np.sort(rng.integers(1, 24, count))[::-1]
    textures = spectra(count, shape, rng) - 0.5
    for leaf in range(leaves[0]):
        some = int(np.sum(leaves > leaf))
        # Radii with density r^-3 look alike at all scales (Lee et al., 2001).
        radius = 0.05 / np.sqrt(1 - rng.uniform(0, 0.99, some))
        ink = _blob(y, x, rng.uniform(0, 1, (some, 2)), radius, rng, max(shape[:2]))
        contrast = rng.uniform(0.2, 0.9, (some, 1, 1, 1))
        contrast = contrast * (rng.random((some, 1, 1, 1)) < 0.5)  # others are plain
        texture = textures[(np.arange(some) + rng.integers(count)) % count]
        colour = _colours(some, shape[2], rng) + contrast.astype("float32") * texture
        ink = ink[..., None]
        images[:some] = images[:some] * (1 - ink) + colour * ink
    black = rng.random(count) < 0.4
    return np.where(black[:, None, None, None], _cut_out(images, rng), images)


def figures(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """One thing each, of one to five shaded parts; most upright, mirrored, on black.

    Arguments and result as of `strokes`.
    """
    y, x = _grid(shape)
    each, most = (count, 1, 1, 1), 5
    ground = _colours(count, shape[2], rng) * (rng.random(each) < 0.3)
    images = np.broadcast_to(ground, (count, *shape)).astype("float32")
    shades = [kind(count, shape, rng) - 0.5 for kind in (spectra, gradients)]
    shade = np.where(rng.random(each) < 0.5, *shades)
    parts, mirrored = rng.integers(1, most + 1, count), rng.random(count) < 0.6
    colour = _colours(count, shape[2], rng, darkest=0.2)
    for part in range(most):
        centre = rng.uniform(0.15, 0.85, (count, 2))
        radius = rng.uniform(0.05, 0.25, count)
        if not part:  # the first one is large and in the middle
            centre, radius = 0.35 + 0.3 * centre, 0.08 + radius
        upright = rng.integers(0, 2, count) * np.pi / 2
        tilt = rng.uniform(-0.6, 0.6, count) * (rng.random(count) < 0.5)
        reach = _reach(
            *(y, x, centre, upright + tilt),
            2 ** rng.uniform(0, 1.25, count),  # up to 5.7 times as long as wide
            rng.uniform(1.5, 8, count),
        )
        ink = _inside(reach, radius, max(shape[:2]))
        both = np.maximum(ink, ink[:, :, ::-1])
        ink = np.where(mirrored[:, None, None], both, ink)
        ink = (ink * (parts > part)[:, None, None])[..., None]
        changed = rng.random(each) < 0.35
        colour = np.where(changed, _colours(count, shape[2], rng), colour)
        hole = (rng.random(each) < 0.15) & (part > 0)
        contrast = rng.uniform(0, 0.8, each) * (rng.random(each) < 0.7) * ~hole
        filling = np.where(hole, ground, colour) + contrast * shade
        images = images * (1 - ink) + filling * ink
    return np.clip(images, 0, 1)


def level_lines(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Where blurred dead leaves and spectra pass a level, drawn bright on black.

    Arguments and result as of `strokes`.
    """
    grey = [
        kind(count, (*shape[:2], 1), rng)[..., 0] for kind in (dead_leaves, spectra)
    ]
    return traced(np.where(rng.random((count, 1, 1)) < 0.5, *grey), shape, rng)


def spectra(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Noise whose amplitude falls with a power of the frequency, 1/f and its like.

    Arguments and result as of `strokes`.
    """
    height, width, channels = shape
    frequency = np.hypot(
        np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width
    )
    frequency[0, 0] = np.inf  # no mean: ranges are set below
    power = rng.uniform(0.6, 2.6, (count, 1, 1, 1))
    # One pattern that the channels share, and an own one for each.
    noise = rng.standard_normal((count, height, width, channels + 1))
    shared = rng.uniform(0.5, 1, (count, 1, 1, 1)) if channels > 1 else 1.0
    noise = shared * noise[..., -1:] + (1 - shared) * noise[..., :-1]
    spectrum = np.fft.rfft2(noise, axes=(1, 2)) * frequency[..., None] ** -power
    return stretched(np.fft.irfft2(spectrum, (height, width), axes=(1, 2)))


def gradients(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Plain ground, linear and radial shades, stripes and checks.

    Arguments and result as of `strokes`.
    """
    y, x = _grid(shape)
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    along = x * np.cos(angle) + y * np.sin(angle)
    centre = rng.uniform(0, 1, (count, 2, 1, 1))
    around = np.hypot(y - centre[:, 0], x - centre[:, 1])
    place = np.where(rng.random((count, 1, 1)) < 0.5, along, around)
    cycles = 2 ** rng.uniform(0, 3.5, (count, 1, 1))
    waves = np.sin(2 * np.pi * (cycles * place + rng.uniform(0, 1, (count, 1, 1))))
    sharp = rng.uniform(1, 8, (count, 1, 1))
    waves = 0.5 + 0.5 * np.clip(sharp * waves, -1, 1)
    wavy = rng.random((count, 1, 1)) < 0.5
    shade = np.where(wavy, waves, stretched(place[..., None])[..., 0])[..., None]
    one, other = (_colours(count, shape[2], rng) for _ in range(2))
    return one * shade + other * (1 - shade)


# Name -> how images of that kind are drawn.
KINDS: dict[str, Drawing] = {
    "strokes": strokes,
    "dead_leaves": dead_leaves,
    "spectra": spectra,
    "gradients": gradients,
    "figures": figures,
    "level_lines": level_lines,
    "writing": writing,
    "soft_writing": soft_writing,
}


def stretched(images: np.ndarray) -> np.ndarray:
    """Each image `(n, height, width, channels)` to the whole range [0, 1]."""
    low = images.min(axis=(1, 2, 3), keepdims=True)
    high = images.max(axis=(1, 2, 3), keepdims=True)
    return ((images - low) / np.maximum(high - low, 1e-6)).astype("float32")


def traced(
    grey: np.ndarray, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Lines where blurred images pass a level, within an ellipse, bright on black.

    Args:
        grey: `(n, height, width)` in [0, 1].
        shape: `(height, width, channels)` of the result.
        rng: draws blur, level, width, colour and ellipse.

    Returns:
        `(n, height, width, channels)` in [0, 1], float32.
    """
    unit = max(shape[:2]) / 28  # blur and line width were found at 28 pixels
    lines = np.empty_like(grey, "float32")
    for index, image in enumerate(grey):
        image = ndimage.gaussian_filter(image, rng.uniform(1, 4) * unit)
        level = np.quantile(image, rng.uniform(0.15, 0.85))
        slope = np.hypot(*np.gradient(image)) + 1e-3
        distance = np.abs(image - level) / slope  # in pixels, near the line
        lines[index] = np.clip(rng.uniform(1, 4) / 2 * unit - distance + 0.5, 0, 1)
    y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    high, wide = rng.uniform(0.5, 1, (2, len(grey), 1, 1))
    lines = lines * (np.square(y / high) + np.square(x / wide) < 1)
    colour = rng.uniform(0.6, 1, (len(grey), 1, 1, shape[2]))
    return (lines[..., None] * colour).astype("float32")


def blobs(
    count: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Masks of one large wobbly shape each, `(n, height, width, 1)` in [0, 1]."""
    y, x = _grid(shape)
    radius = rng.uniform(0.2, 0.5, count)
    centre = rng.uniform(0.35, 0.65, (count, 2))
    return _blob(y, x, centre, radius, rng, max(shape[:2]))[..., None]


def _written(count, shape, rng, edge, pens, heights) -> np.ndarray:
    """Lines of a pen that fill a frame, `(n, height, width, channels)` in [0, 1].

    Args:
        count: n.
        shape: `(height, width, channels)`.
        rng: draws lines, pen, frame and colour.
        edge: `(n, 1, 1)`, how wide the pen's edge is, of the longer side.
        pens: least and largest half of the pen's width, likewise.
        heights: least and largest height of the frame, likewise.
    """
    y, x = _grid(shape)
    each = (count, 1, 1)
    pen = rng.uniform(*pens, each)
    frame = rng.uniform((heights[0], 0.1), (heights[1], 0.9), (count, 1, 2))
    frame = np.maximum(frame - 2 * pen, 0.05)
    centre, slant = rng.uniform(0.44, 0.56, (count, 1, 2)), rng.uniform(-0.4, 0.4, each)
    other = _pen_line(count, rng) * rng.uniform(0.1, 1, (count, 1, 2))
    other = other + rng.uniform(-0.3, 0.3, (count, 1, 2))
    lines = []
    for line in (_pen_line(count, rng), other):
        down, right = np.split(line * frame, 2, axis=-1)
        line = centre + np.concatenate([down, right - slant * down], axis=-1)
        lines.append(_to_line(y, x, line))
    single = rng.random(each) < 0.65
    distance = np.where(single, lines[0], np.minimum(*lines))
    ink = np.clip((pen - distance) / edge + 0.5, 0, 1)[..., None]
    return ink * _colours(count, shape[2], rng, darkest=0.7)


def _pen_line(count: int, rng) -> np.ndarray:
    """Points `(n, p, 2)` along one line each, which fill a square of side 1 around 0.

    Two of three are smooth, sums of few waves; others have corners.
    """
    t, waves = np.linspace(0, 1, _LINE_POINTS), np.arange(1, 6)
    size = rng.standard_normal((count, 1, 2, 5)) / waves ** rng.uniform(
        0.8, 2, (count, 1, 1, 1)
    )
    begin = rng.uniform(0, 2 * np.pi, (count, 1, 2, 5))
    periods = rng.uniform(0.3, 1, (count, 1, 1, 1)) * waves
    angle = 2 * np.pi * periods * t[:, None, None] + begin
    smooth = np.sum(size * np.cos(angle), axis=-1)
    corners = rng.uniform(-1, 1, (count, 5, 2))
    pieces = rng.integers(1, 5, (count, 1))
    number = np.minimum((t * pieces).astype(int), pieces - 1)
    start, end = (
        np.take_along_axis(corners, number[..., None] + step, 1) for step in (0, 1)
    )
    bent = start + (end - start) * (t * pieces - number)[..., None]
    line = np.where(rng.random((count, 1, 1)) < 0.65, smooth, bent)
    low, high = line.min(axis=1, keepdims=True), line.max(axis=1, keepdims=True)
    return (line - low) / np.maximum(high - low, 1e-3) - 0.5


def _blob(y, x, centre, radius, rng, pixels: int) -> np.ndarray:
    """Superellipses with waves on their edge, `(n, height, width)` in [0, 1].

    Args:
        y: `(height, 1)` coordinates.
        x: `(1, width)` coordinates.
        centre: `(n, 2)`.
        radius: `(n,)`.
        rng: draws the form.
        pixels: of the longer side, for edges one pixel soft.
    """

    def uniform(low, high):
        return rng.uniform(low, high, (len(radius), 1, 1)).astype("float32")

    count = len(radius)
    reach = _reach(
        *(y, x, centre, rng.uniform(0, np.pi, count)),
        2 ** rng.uniform(-0.5, 0.5, count),
        rng.uniform(1, 6, count),
    )
    centre = centre.astype("float32")
    down, right = y - centre[:, :1, None], x - centre[:, 1:, None]
    turn = np.arctan2(down, right)
    for wave in (2, 3, 5):
        size = uniform(0, 0.3 / wave)
        reach = reach * (1 + size * np.sin(wave * turn + uniform(0, 2 * np.pi)))
    return _inside(reach, radius, pixels)


def _inside(reach, radius, pixels: int) -> np.ndarray:
    """1 where `reach` is below each radius, 0 beyond an edge of one pixel."""
    edge = (radius[:, None, None].astype("float32") - reach) * pixels
    return np.clip(edge + 0.5, 0, 1)


def _reach(y, x, centre, angle, stretch, power) -> np.ndarray:
    """Distance from each centre in the norm of a superellipse, `(n, height, width)`.

    Args:
        y: `(height, 1)` coordinates.
        x: `(1, width)` coordinates.
        centre: `(n, 2)`.
        angle: `(n,)`, of its shorter axis.
        stretch: `(n,)`: one axis is shorter by it, the other longer.
        power: `(n,)`: 1 a rhombus, 2 an ellipse, large ones a rectangle.
    """
    arrays = (*centre.T, angle, stretch, power)
    up, left, angle, stretch, power = (
        np.asarray(a, "float32")[:, None, None] for a in arrays
    )
    down, right = y - up, x - left
    first = np.abs(np.cos(angle) * right + np.sin(angle) * down) * stretch
    second = np.abs(np.cos(angle) * down - np.sin(angle) * right) / stretch
    largest = np.maximum(np.maximum(first, second), 1e-9)
    ratio = np.minimum(first, second) / largest
    return largest * (1 + ratio**power) ** (1 / power)


def _grid(shape) -> tuple[np.ndarray, np.ndarray]:
    """Pixels' centres in [0, 1] along the longer side: `(height, 1)`, `(1, width)`."""
    longer = max(shape[:2])
    y, x = (
        (np.arange(side) + 0.5 + (longer - side) / 2) / longer for side in shape[:2]
    )
    return y[:, None].astype("float32"), x[None].astype("float32")


def _to_line(y, x, points) -> np.ndarray:
    """Distance of each pixel from a line through points `(n, p, 2)`."""
    found = np.full((len(points), len(y), x.shape[1]), np.inf, "float32")
    for start, end in itertools.pairwise(np.moveaxis(points, 1, 0)):
        np.minimum(found, _to_segment(y, x, start, end), out=found)
    return found


def _to_segment(y, x, start, end) -> np.ndarray:
    """Distance of each pixel from a line segment, `(n, height, width)`."""
    start, end = start.astype("float32"), end.astype("float32")
    along = (end - start)[:, :, None, None]
    down, right = y - start[:, :1, None], x - start[:, 1:, None]
    length = np.maximum(np.square(along).sum(1), 1e-9)
    place = np.clip((down * along[:, 0] + right * along[:, 1]) / length, 0, 1)
    return np.hypot(down - place * along[:, 0], right - place * along[:, 1])


def _colours(count, channels, rng, darkest=0.0) -> np.ndarray:
    """One colour per image, `(n, 1, 1, channels)`; half of them are greys."""
    colours = rng.uniform(0, 1, (count, 1, 1, channels)).astype("float32")
    if channels > 1:
        grey = rng.random((count, 1, 1, 1)) < 0.5
        colours = np.where(grey, colours[..., :1], colours)
    return darkest + (1 - darkest) * colours


def _grounded(images, rng) -> np.ndarray:
    """Some images inverted, some on a ground of their own instead of black."""
    count, channels = len(images), images.shape[-1]
    images = _cut(images, rng.random(count) < 0.2, _colours(count, channels, rng))
    inverted = (rng.random(count) < 0.15)[:, None, None, None]
    return np.where(inverted, 1 - images, images)


def _cut(images, where, ground) -> np.ndarray:
    """Replaces black by `ground` in the images where `where` holds."""
    light = images.max(axis=-1, keepdims=True)
    filled = images + (1 - light) * ground * where[:, None, None, None]
    return np.clip(filled, 0, 1)


def _cut_out(images, rng) -> np.ndarray:
    """What one large shape shows of each image, before black."""
    return images * blobs(len(images), images.shape[1:], rng)
