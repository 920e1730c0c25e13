"""Label maps on disk: index PNGs, their void value, their colours."""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from fcn.errors import UserError
from fcn.files import atomic_file

VOID = 255  # in every array and file of ours

INDEX_MODES = {"1", "P", "L", "I", "I;16", "I;16B"}
ORIENTATION = ExifTags.Base.Orientation
# By orientation, what undoes the turn that Pillow gives a TIFF.
TURNED_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
CONVERT = "convert the label images to class indices, as 8-bit grey or palette PNGs"


def voc_palette() -> np.ndarray:
    """The PASCAL VOC colour map, uint8 (256, 3).

    Bits 0, 1, 2 of the index go to the top bits of red, green and blue, bits 3, 4, 5 to the next
    ones, and so on (VOC development kit, VOClabelcolormap.m); 255 comes out as (224, 224, 192).
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> channel) & 1) << (7 - bit)).astype(np.uint8)
        index = index >> 3
    return palette


VOC_COLOURS = voc_palette().tobytes()


def check_label(values: np.ndarray, source: object, classes: int, void: int | None) -> np.ndarray:
    """Normalise a label map of integers (H, W) to uint8 with void as 255.

    ``void`` is its value in ``values`` (None: there is none) and wins over a class of that index.
    Any other value outside 0..classes-1 is a UserError that names ``source`` and the values.
    """
    if not 0 < classes <= VOID:
        raise UserError(f"{source}: {classes} classes do not fit 8-bit labels (1 to {VOID}).")
    is_void = np.zeros(values.shape, bool) if void is None else values == void
    wrong = ((values < 0) | (values >= classes)) & ~is_void
    if wrong.any():
        found = np.unique(values[wrong])
        shown = ", ".join(str(value) for value in found[:5]) + (", .." if len(found) > 5 else "")
        allowed = f"0 to {classes - 1}" + ("" if void is None else f" and {void} for void")
        raise UserError(
            f"{source}: label value {shown} in {int(wrong.sum())} pixels, but only {allowed} are "
            "allowed; correct the list of classes or the value of void."
        )
    return np.where(is_void, VOID, values).astype(np.uint8)


def stored(image: ImageFile.ImageFile) -> Image.Image:
    """An image that was just opened, decoded to its end, in the pixels that its file stores.

    Labels lie on stored pixels, so no reader applies an orientation. Pillow does while it decodes a
    TIFF, and drops the tag; both are put back here, and every image carries its own orientation.
    """
    orientation = image.getexif().get(ORIENTATION, 1) if image.format == "TIFF" else 1
    if orientation in TURNED_BACK:
        image.filename = ""  # mapped into memory by name, rows of the turned width would be read
    image.load()
    if orientation not in TURNED_BACK or ORIENTATION in image.getexif():
        return image
    back = image.transpose(TURNED_BACK[orientation])
    back.getexif()[ORIENTATION] = orientation
    return back


def open_image(path: str | Path | BinaryIO, kind: str = "image") -> Image.Image:
    """An image as ``stored`` gives it; a missing, broken or huge one is a UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return stored(image)
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind.removesuffix(' image')} file.") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = Image.MAX_IMAGE_PIXELS
        raise UserError(f"{path}: an image of more than {most} pixels; cut it up.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a readable {kind} ({error}).") from None


def _packed_colours(image: Image.Image) -> np.ndarray:
    return _pack(np.asarray(image.convert("RGB")))


def _pack(colours: np.ndarray) -> np.ndarray:
    """uint8 (.., 3) colours as one uint32 each, made in place: of labels that may be large."""
    packed = colours[..., 0].astype(np.uint32)
    for channel in (1, 2):
        packed <<= 8
        packed |= colours[..., channel]
    return packed


def _grey_step(path: str | Path | BinaryIO) -> int:
    """By how much Pillow multiplies the values of a grey PNG: those of 2 and 4 bits fill 0..255."""
    if isinstance(path, str | Path):
        with Path(path).open("rb") as file:
            return _grey_step(file)
    path.seek(24)  # the bit depth, after signature, length, "IHDR", width and height
    return {2: 85, 4: 17}.get(path.read(1)[0], 1)


def _reordered(image: Image.Image, classes: int, void: int | None) -> bool:
    """Whether the indices of a palette image are not those of the VOC colours that they stand for.

    So PNG optimisers leave them, with the colours in use alone. Grey palettes, and those with a
    colour that is unused, that VOC's lacks or has for no class of ``classes``, are somebody's own.
    """
    palette = np.asarray(image.getpalette() or [], np.uint8).reshape(-1, 3)
    index = {colour: i for i, colour in enumerate(_pack(voc_palette()).tolist())}
    found = [index.get(colour) for colour in _pack(palette).tolist()]
    theirs = {i: own for i, own in enumerate(found) if own is not None}
    used = np.flatnonzero(image.histogram()).tolist()
    if len(theirs) < len(found) or used[-1] >= len(found):
        return False
    coloured = np.flatnonzero(palette.any(axis=1)).tolist()
    end = max([*used, *coloured]) + 1  # from there the palette is filled up with black
    if len(used) < end or (palette[used] == palette[used, :1]).all():
        return False
    if not all(theirs[i] < classes or theirs[i] in (VOID, void) for i in used):
        return False
    return any(
        theirs.get(theirs[i]) != theirs[i]  # not where it has a colour twice
        and not (i == void and theirs[i] == VOID)
        for i in used
    )


def read_label(
    path: str | Path | BinaryIO,
    classes: int,
    void: int | None,
    remedy: str | None = None,
    beyond: bool = False,
) -> np.ndarray:
    """Read an index PNG (palette or grey of 1 to 16 bits) as uint8 (H, W): 0..classes-1, void 255.

    ``void`` is the value that means void in the file, None if it has none. A file in colour, or
    with a value that is neither a class nor void, is a UserError, as is one in VOC's palette with
    its entries in another order; ``remedy`` is what it advises for colours where there is no
    definition of a data set to change. ``beyond`` lets values pass that are no class, up to 254.
    """
    image = open_image(path, "label image")
    if image.mode == "P" and _reordered(image, classes, void):
        raise UserError(
            f"{path}: its palette was re-ordered, as PNG optimisers do: it has PASCAL VOC's "
            "colours at other indices than theirs; "
            + (
                "write the class indices anew, as an 8-bit grey PNG."
                if remedy
                else "set `colours: voc` for the data set."
            )
        )
    if image.mode in INDEX_MODES:
        values = np.asarray(image)
        if values.dtype == bool:
            values = values + 0
        elif image.mode == "L" and image.format == "PNG":
            values = values // _grey_step(path)
        return check_label(values, path, VOID if beyond else classes, void)
    if image.mode not in ("RGB", "RGBA", "CMYK", "LA", "PA"):
        raise UserError(
            f"{path}: a label of mode {image.mode}; store class indices as an 8-bit PNG."
        )
    voc = np.isin(np.unique(_packed_colours(image)), _pack(voc_palette())).all()
    remedy = remedy or (
        "all its colours are PASCAL VOC's: set `colours: voc` for the data set"
        if voc
        else "give the data set `colours`, a list of one [red, green, blue] per class"
    )
    raise UserError(
        f"{path}: the label is colour-coded (mode {image.mode}), where class indices are expected; "
        f"{remedy}."
    )


def read_coloured_label(
    path: str | Path,
    colours: str | Sequence[Sequence[int]],
    classes: int,
    void: Sequence[int] | int | None,
) -> np.ndarray:
    """Read a colour-coded label as uint8 (H, W): class k where the colour is ``colours[k]``.

    ``colours`` is ``"voc"`` (the VOC colour map, whose 255 is void; ``void`` names another index
    that is void as well) or one [r, g, b] per class; ``void`` is then the [r, g, b] of void, if it
    has one. Another colour is a UserError.
    """
    if colours == "voc":
        if isinstance(void, Sequence):
            raise UserError(
                f"void: {list(void)} is a colour, but with `colours: voc` void is an index."
            )
        table, index = voc_palette(), np.arange(256)
        keep = (index < classes) | (index == VOID) | (index == void)
        table, index = table[keep], np.where(index == void, VOID, index)[keep]
    else:
        if isinstance(void, int):
            raise UserError(
                f"void: {void} is an index, but with a list of `colours` void is a colour, "
                "[red, green, blue]."
            )
        rows = [list(colour) for colour in colours]
        if len(rows) != classes:
            raise UserError(f"colours: {len(rows)} colours for {classes} classes; give one each.")
        index = np.arange(classes)
        if isinstance(void, Sequence):
            rows, index = rows + [list(void)], np.append(index, VOID)
        table = np.asarray(rows)
        if table.shape != (len(rows), 3) or table.min() < 0 or table.max() > 255:
            raise UserError("colours and void: each must be [red, green, blue] of 0 to 255.")
    keys = _pack(table.astype(np.uint8))
    order = np.argsort(keys)
    keys, index = keys[order], index[order].astype(np.uint8)
    if (keys[1:] == keys[:-1]).any():
        raise UserError("colours: two classes have the same colour.")
    image = open_image(path, "label image")
    packed = _packed_colours(image)
    place = np.searchsorted(keys, packed)
    np.minimum(place, len(keys) - 1, out=place)
    wrong = keys[place] != packed
    if wrong.any():
        found = np.unique(packed[wrong])
        if image.mode in ("L", "I", "I;16"):
            raise UserError(
                f"{path}: holds indices of classes, where `colours` is set; the label images of a "
                "data set must all be of one kind."
            )
        shown = ", ".join(f"({c >> 16}, {(c >> 8) & 255}, {c & 255})" for c in found[:3])
        raise UserError(
            f"{path}: {len(found)} colours of {int(wrong.sum())} pixels belong to no class "
            f"({shown}{', ..' if len(found) > 3 else ''}); complete `colours` or set `void`."
        )
    return index[place]


def label_png(array: np.ndarray, palette: bool = True) -> bytes:
    """A uint8 (H, W) label map as the bytes of an index PNG, in VOC colours or else in grey."""
    if array.dtype != np.uint8 or array.ndim != 2:
        raise ValueError(f"a label map is uint8 (H, W), not {array.dtype} {array.shape}")
    image = Image.fromarray(np.ascontiguousarray(array))
    if palette:
        image.putpalette(VOC_COLOURS)
    stream = BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def write_label(path: str | Path, array: np.ndarray, palette: bool = True) -> None:
    """Write a uint8 (H, W) label map as an index PNG, in VOC colours or (palette=False) in grey."""
    data = label_png(array, palette)
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
