"""What of an image survives rotation, mirroring, shifting and re-encoding, and is the same photograph behind two files?

A signature holds four things, all taken inside the *valid area*, which is the image without the black that touches
its border (the fill of an augmentation, or a dark background; leaving either out is harmless, because every copy
leaves out the same):

* `statistics`: quantiles of intensity, of colour differences and of gradient magnitude. They hardly change under a
  rotation, a mirror or a moderate shift and propose candidate pairs cheaply; they prove nothing, since two chest
  X-rays of different patients can agree in all of them.
* `points`, `descriptors`, `mirrored`: ORB features (Rublee et al., ICCV 2011), with a second set of descriptors as a
  mirror would show the same points, because ORB is invariant to rotation but not to reflection.
* `detail` and `colour`: the locally normalised grey image, 64 pixels long, and the colours, 32 pixels long, by which a
  proposed registration is checked.

`compare` proves a pair: matched features must agree on one affine map near a rotation (RANSAC, Fischler and Bolles
1981; augmentations shear and zoom a little too), and under that map the details must correlate, and the colours agree,
over the overlap of the two valid areas. A second exposure of the same field (the blood-cell set has some) correlates
but differs in colour, and counts as another photograph; so does a recoloured copy, but not one of other brightness.
Copies of one photograph
agree in 25 to 110 features and correlate above 0.9; different chest X-rays reach 30 features and 0.89, different
everyday photographs 8 features and 0.3.
"""

import dataclasses

import cv2
import numpy as np

WORKING_SIZE = 320  # the longer side at which features are found, in pixels; larger images are reduced to it
SMALLEST_WORKING_SIZE = 256  # smaller images are enlarged to it, so that the feature patches fit
SMALLEST_SIDE = 48  # below this many pixels of source an image holds too little to prove a common photograph
NUM_POINTS = 160
CANVAS = 64  # side of the square, in pixels, into whose corner `detail` is written
FILL_LEVEL = 24  # a border-connected pixel darker than this (of 255) in all channels is fill; JPEG ringing stays below
SMALLEST_VALID_SHARE = 0.4  # with a smaller valid area the black is background, not fill
FILL_VALUE = -128  # marks fill in `detail`
QUANTILES = (0.03, 0.08, 0.15, 0.25, 0.35, 0.5, 0.65, 0.75, 0.85, 0.92, 0.97)
NUM_STATISTICS = 7 * len(QUANTILES)

SIGNATURE = np.dtype(
    [
        ("statistics", np.float32, (NUM_STATISTICS,)),
        ("count", np.int32),
        ("points", np.float32, (NUM_POINTS, 2)),
        ("descriptors", np.uint8, (NUM_POINTS, 32)),
        ("mirrored", np.uint8, (NUM_POINTS, 32)),
        ("detail", np.int8, (CANVAS, CANVAS)),
        ("colour", np.uint8, (CANVAS // 2, CANVAS // 2, 3)),
    ]
)

SCALE_RANGE = (0.75, 1.35)  # augmentations zoom a little; a larger change of scale is another crop, and rare
MATCH_DISTANCE = 70  # bits of 256
MATCH_RATIO = 0.92
LOOSE_ERROR = 1.5  # canvas pixels, 7.5 working pixels, while the shear is unknown
REPROJECTION_ERROR = 0.9  # canvas pixels, 4.5 working pixels
REGISTERED = ((8, 0.95), (12, 0.9), (35, 0.8))  # agreeing features with a correlation; one of these must hold
SMALLEST_OVERLAP = 0.6  # of the smaller valid area; two copies shifted by a fifth of the side overlap by 0.67

COLOUR_DIFFERENCE = 1.2  # grey levels; copies of blood cells reach 0.3, colourful photographs after JPEG 1.1


@dataclasses.dataclass(frozen=True)
class Evidence:
    """How well two signatures register.

    Attributes:
        inliers: matched features that agree on the transform.
        correlation: of the details over the shared area, at most 1.
        overlap: shared part of the smaller valid area, 0..1.
        colour_difference: largest difference of a channel's mean over the shared area, in grey levels of 255, after one
            gain common to all channels.
    """

    inliers: int
    correlation: float
    overlap: float
    colour_difference: float

    @property
    def same_photograph(self) -> bool:
        """Whether this proves a common photograph."""
        registered = any(self.inliers >= n and self.correlation >= least for n, least in REGISTERED)
        return registered and self.overlap >= SMALLEST_OVERLAP and self.colour_difference <= COLOUR_DIFFERENCE


def _three_channels(image: np.ndarray) -> np.ndarray:
    """uint8 or uint16 `[H, W]` or `[H, W, C]` to uint8 `[H, W, 3]`; further channels are left out."""
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype == np.uint16:
        # Twelve-bit cameras leave the upper four bits empty.
        image = (image >> (8 if image.max() > 4095 else 4)).astype(np.uint8)
    if image.dtype != np.uint8:
        raise TypeError(f"signature takes uint8 or uint16 images, not {image.dtype}")
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 2:
        return np.concatenate([image, image.max(axis=2, keepdims=True)], axis=2)
    return np.ascontiguousarray(image[..., :3])


def valid_area(image: np.ndarray) -> np.ndarray:
    """uint8 `[H, W, 3]` to uint8 `[H, W]`: 1 where the picture is, 0 in black areas that touch the border."""
    red, green, blue = cv2.split(image)
    dark = (cv2.max(cv2.max(red, green), blue) < FILL_LEVEL).astype(np.uint8)
    count, areas = cv2.connectedComponents(dark, connectivity=4)
    border = np.unique(np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]]))
    keep = np.ones(count, np.uint8)
    keep[border[border > 0]] = 0
    valid = keep[areas]
    return valid if valid.mean() > 0.02 else np.ones_like(valid)


def _resize(image: np.ndarray, longer_side: int) -> np.ndarray:
    height, width = image.shape[:2]
    scale = longer_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _statistics(image: np.ndarray, grey: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Quantiles `[NUM_STATISTICS]` in grey levels over the valid pixels of a reduced image `[h, w, 3]`."""
    red, green, blue = cv2.split(image)
    gradient = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    planes = [
        red,
        green,
        blue,
        cv2.addWeighted(red, 1.0, green, -1.0, 128),
        cv2.addWeighted(blue, 1.0, green, -1.0, 128),
        cv2.addWeighted(red, 1.0, blue, -1.0, 128),
        cv2.convertScaleAbs(gradient, alpha=0.5),
    ]
    levels = np.arange(257, dtype=np.float32)
    values = []
    for plane in planes:
        histogram = cv2.calcHist([plane], [0], valid, [256], [0, 256]).ravel()
        cumulative = np.concatenate([[0], np.cumsum(histogram)]) / max(histogram.sum(), 1)
        values.append(np.interp(QUANTILES, cumulative, levels))
    return np.concatenate(values).astype(np.float32)


def _detail(grey: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Grey minus its local mean over valid pixels, in units of 1/32 standard deviation, int8 `[CANVAS, CANVAS]`."""
    small = _resize(grey, CANVAS).astype(np.float32)
    inside = (cv2.resize(valid, small.shape[::-1], interpolation=cv2.INTER_AREA) > 0).astype(np.float32)
    weight = cv2.GaussianBlur(inside, (0, 0), 5.0)
    residual = (small - cv2.GaussianBlur(small * inside, (0, 0), 5.0) / np.maximum(weight, 1e-3)) * inside
    deviation = np.sqrt((residual**2).sum() / max(inside.sum(), 1.0))
    scaled = np.clip(np.rint(residual / max(deviation, 0.5) * 32), -127, 127).astype(np.int8)
    canvas = np.full((CANVAS, CANVAS), FILL_VALUE, np.int8)
    canvas[: small.shape[0], : small.shape[1]] = np.where(inside > 0, scaled, FILL_VALUE)
    return canvas


def _features(grey: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ORB points `[n, 2]` in canvas pixels, descriptors `[n, 32]`, and descriptors as seen in a mirror `[n, 32]`."""
    orb = cv2.ORB_create(
        nfeatures=NUM_POINTS, scaleFactor=1.5, nlevels=2, edgeThreshold=16, patchSize=31, fastThreshold=7
    )
    points, descriptors = orb.detectAndCompute(grey, valid)
    if not points:
        return np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8), np.zeros((0, 32), np.uint8)
    points, descriptors = points[:NUM_POINTS], descriptors[:NUM_POINTS]
    width = grey.shape[1]
    reflected = [
        cv2.KeyPoint(width - 1 - p.pt[0], p.pt[1], p.size, (180 - p.angle) % 360, p.response, p.octave, index)
        for index, p in enumerate(points)
    ]
    # The computation may reorder the points or drop those at the border; class_id says which is which.
    reflected, mirrored = orb.compute(np.ascontiguousarray(grey[:, ::-1]), reflected)
    if not reflected:
        return np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8), np.zeros((0, 32), np.uint8)
    kept = np.array([p.class_id for p in reflected])
    scale = CANVAS / max(grey.shape)
    positions = (np.array([points[index].pt for index in kept], np.float32) + 0.5) * scale - 0.5
    return positions, descriptors[kept], mirrored


def signature(image: np.ndarray) -> np.ndarray:
    """Signature of a decoded image: a record of dtype `SIGNATURE` (19 kB, fixed length; stack them to `[N]`).

    Args:
        image: uint8 or uint16 `[H, W, C]` (or `[H, W]`), any number of channels, of which the first three are used.

    Raises:
        TypeError: for another dtype.
    """
    result = np.zeros((), SIGNATURE)
    source_side = min(image.shape[:2])
    longer_side = int(np.clip(max(image.shape[:2]), SMALLEST_WORKING_SIZE, WORKING_SIZE))
    image = _resize(_three_channels(image), longer_side)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    half = _resize(image, longer_side // 2)
    valid = cv2.erode(valid_area(half), np.ones((3, 3), np.uint8), iterations=2)
    result["statistics"] = _statistics(half, cv2.resize(grey, half.shape[1::-1]), valid)
    if valid.mean() < SMALLEST_VALID_SHARE:
        # A dark background, as in fluorescence microscopy, is content: most features lie on the edge of what shines.
        valid = np.ones_like(valid)
    result["detail"] = _detail(cv2.cvtColor(half, cv2.COLOR_RGB2GRAY), valid)
    small = _resize(half, CANVAS // 2)
    result["colour"][: small.shape[0], : small.shape[1]] = small
    if source_side >= SMALLEST_SIDE:
        # A feature's patch must not reach into the fill, or the edge of the fill itself would be matched.
        inner = cv2.erode(valid, np.ones((3, 3), np.uint8), iterations=3)  # the border of the image does not erode
        inner = cv2.resize(inner, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
        points, descriptors, mirrored = _features(grey, inner)
        count = len(points)
        result["count"] = count
        result["points"][:count] = points
        result["descriptors"][:count] = descriptors
        result["mirrored"][:count] = mirrored
    return result


def _agreement(first: np.ndarray, second: np.ndarray, transform: np.ndarray, mirror: bool) -> tuple[float, ...]:
    """Correlation, overlap (0..1) and colour difference (grey levels) when `transform` maps first on second."""
    detail, other, colour, other_colour = first["detail"], second["detail"], first["colour"], second["colour"]
    if mirror:
        other, other_colour = other[:, ::-1], other_colour[:, ::-1]
    inside, other_inside = (detail != FILL_VALUE).astype(np.uint8), other != FILL_VALUE
    moved = cv2.warpAffine(np.where(inside, detail, 0).astype(np.float32), transform, (CANVAS, CANVAS))
    shared = (cv2.warpAffine(inside * 255, transform, (CANVAS, CANVAS)) > 250) & other_inside
    overlap = float(shared.sum() / max(min(inside.sum(), other_inside.sum()), 1))
    # A colour pixel covers two by two canvas pixels; only those that lie well inside the shared area are compared.
    side = CANVAS // 2
    whole = shared.reshape(side, 2, side, 2).all((1, 3)).astype(np.uint8)
    whole = cv2.erode(whole, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if whole.sum() < 16:
        return 0.0, overlap, 255.0
    halved = np.concatenate([transform[:, :2], (transform @ (0.5, 0.5, 1.0) - 0.5)[:, None] / 2], axis=1)
    colours, other_colours = cv2.warpAffine(colour.astype(np.float32), halved, (side, side))[whole], other_colour[whole]
    # Keras stretches what it saves to 0..255, so that copies differ by a gain when the brightest spot is shifted out.
    colour_means, other_means = colours.mean(0), other_colours.mean(0)
    difference = colour_means * (other_means.sum() / max(colour_means.sum(), 1.0)) - other_means
    values, others = moved[shared], other[shared].astype(np.float32)
    values, others = values - values.mean(), others - others.mean()
    correlation = (values * others).sum() / max(np.sqrt((values**2).sum() * (others**2).sum()), 1e-6)
    return float(correlation), overlap, float(np.abs(difference).max())


def _register(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Affine map `[2, 3]` near a rotation that most points `[n, 2]` agree on, and how many do; None if there is none.

    RANSAC looks for a similarity, which needs two points and is rarely met by chance, with a tolerance that lets a
    sheared copy pass; least squares on the agreeing points then finds the shear.
    """
    transform, agreeing = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=LOOSE_ERROR, maxIters=500, confidence=0.99
    )
    if transform is None:
        return None, 0
    agrees = agreeing.ravel().astype(bool)
    homogeneous = np.concatenate([source, np.ones((len(source), 1), source.dtype)], axis=1).astype(np.float64)
    for _ in range(3):
        if agrees.sum() < 5:
            return None, 0
        transform = np.linalg.lstsq(homogeneous[agrees], target[agrees], rcond=None)[0].T
        error = np.linalg.norm(homogeneous @ transform.T - target, axis=1)
        agrees = error < REPROJECTION_ERROR
    large, small = np.linalg.svd(transform[:, :2], compute_uv=False)
    if not (SCALE_RANGE[0] < small <= large < SCALE_RANGE[1]) or np.linalg.det(transform[:, :2]) <= 0:
        return None, 0
    return transform, int(agrees.sum())


def compare(first: np.ndarray, second: np.ndarray) -> Evidence:
    """Best registration of two signatures (records of dtype `SIGNATURE`), with or without a mirror.

    Deterministic; without enough features the evidence is `Evidence(0, 0.0, 0.0, 255.0)`.
    """
    best = Evidence(0, 0.0, 0.0, 255.0)
    n, m = int(first["count"]), int(second["count"])
    if n < 6 or m < 6:
        return best
    for mirror in (False, True):
        descriptors = second["mirrored" if mirror else "descriptors"][:m]
        distance, index = cv2.batchDistance(
            first["descriptors"][:n], descriptors, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=2
        )
        good = (distance[:, 0] < MATCH_DISTANCE) & (distance[:, 0] < MATCH_RATIO * distance[:, 1])
        if good.sum() < 5:
            continue
        target = second["points"][index[good, 0]]
        if mirror:
            target = np.stack([CANVAS - 1 - target[:, 0], target[:, 1]], axis=1)
        transform, inliers = _register(first["points"][:n][good], target)
        if transform is None:
            continue
        if inliers > best.inliers:
            best = Evidence(inliers, *_agreement(first, second, transform, mirror))
    return best
