import struct
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fcn.data.labels import (
    ORIENTATION,
    check_label,
    open_image,
    read_coloured_label,
    read_label,
    voc_palette,
    write_label,
)
from fcn.errors import UserError

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)


def maps(classes: int, void: int):
    values = st.integers(0, classes - 1) | st.just(void)
    return hnp.arrays(np.uint8, SHAPES, elements=values)


def test_palette_is_vocs_own():
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    known = {1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 9: (192, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {k: tuple(map(int, palette[k])) for k in known} == known
    assert len(np.unique(palette, axis=0)) == 256


@settings(max_examples=30)
@given(array=maps(21, 255), palette=st.booleans())
def test_written_labels_read_back(tmp_path_factory, array, palette):
    path = tmp_path_factory.mktemp("label") / "a.png"
    write_label(path, array, palette)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert Image.open(path).mode == ("P" if palette else "L")
    np.testing.assert_array_equal(read_label(path, 21, 255), array)


@settings(max_examples=30)
@given(array=maps(11, 11), mode=st.sampled_from(["L", "I;16"]))
def test_void_becomes_255(tmp_path_factory, array, mode):
    path = tmp_path_factory.mktemp("label") / "a.png"
    Image.fromarray(array.astype(np.uint8 if mode == "L" else np.uint16)).save(path)
    assert Image.open(path).mode == mode
    read = read_label(path, 11, 11)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.where(array == 11, 255, array))


@settings(max_examples=30)
@given(array=maps(21, 255))
def test_colours_read_as_indices(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("label") / "a.png"
    Image.fromarray(voc_palette()[array]).save(path)
    np.testing.assert_array_equal(read_coloured_label(path, "voc", 21, None), array)
    with pytest.raises(UserError, match=r"a\.png.*colour-coded.*`colours: voc`"):
        read_label(path, 21, 255)


def test_colours_take_little_memory(tmp_path):
    Image.new("RGB", (1000, 1000), (128, 0, 0)).save(tmp_path / "a.png")
    tracemalloc.start()
    label = read_coloured_label(tmp_path / "a.png", "voc", 21, None)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert label.dtype == np.uint8 and (label == 1).all()
    assert most < 20 * label.size  # 8 bytes of them an index of searchsorted


def test_a_palette_file_is_indices_or_colours_as_told(tmp_path):
    image = Image.fromarray(np.array([[1, 0]], np.uint8))
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.save(tmp_path / "a.png")
    assert read_label(tmp_path / "a.png", 2, None).tolist() == [[1, 0]]
    read = read_coloured_label(tmp_path / "a.png", [[9, 8, 7]], 1, [0, 0, 0])
    assert read.tolist() == [[0, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_turned_tiff_is_read_as_it_is_stored(tmp_path, orientation, compression, dtype):
    """Pillow turns it while decoding, and of one without compression it mixes up the rows."""
    path, array = tmp_path / "a.tif", np.arange(35, dtype=dtype).reshape(5, 7)
    tags = {ORIENTATION: orientation}
    Image.fromarray(array).save(path, tiffinfo=tags, compression=compression)
    image = open_image(path)
    assert image.size == (7, 5) and image.getexif().get(ORIENTATION, 1) == orientation
    np.testing.assert_array_equal(np.asarray(image), array)
    np.testing.assert_array_equal(read_label(path, 35, None), array)


def grey_png(array, bits):
    """A grey PNG of few bits, which Pillow does not write: rows of a multiple of 8 bits."""
    height, width = array.shape
    digits = (array[..., None] >> np.arange(bits)[::-1] & 1).reshape(height, -1)
    rows = np.packbits(digits.astype(np.uint8), axis=1)
    filtered = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + body))
        data += struct.pack(">I", len(body)) + kind + body + check
    return data


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_is_not_scaled(tmp_path, bits):
    array = (np.arange(64).reshape(4, 16) % 2**bits).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(grey_png(array, bits))
    assert read_label(tmp_path / "a.png", 255, None).tolist() == array.tolist()
    assert read_label(BytesIO(grey_png(array, bits)), 255, None).tolist() == array.tolist()


def palette_png(path, array, palette):
    image = Image.fromarray(np.array(array, np.uint8))
    image.putpalette(np.asarray(palette, np.uint8).tobytes())
    image.save(path)


def test_a_reordered_voc_palette_is_told(tmp_path):
    path = tmp_path / "a.png"
    palette_png(path, [[0, 1, 2, 3]], voc_palette()[[0, 3, 15, 255]])
    with pytest.raises(UserError, match=r"a\.png: its palette was re-ordered.*`colours: voc`"):
        read_label(path, 21, 255)
    with pytest.raises(UserError, match=r"re-ordered.*the class indices anew, as an 8-bit grey"):
        read_label(path, 255, 255, "convert them")
    assert read_coloured_label(path, "voc", 21, None).tolist() == [[0, 3, 15, 255]]
    palette_png(path, [[0, 1]], voc_palette()[[0, 255]])  # background and void
    with pytest.raises(UserError, match="re-ordered"):
        read_label(path, 21, 255)
    black = [(0, 0, 0)] * 252
    for array, entries in (([[0, 1, 2, 3]], [0, 3, 15, 255]), ([[0, 1, 2]], [3, 15, 0])):
        palette_png(path, array, [*voc_palette()[entries], *black])  # filled up, as some tools do
        with pytest.raises(UserError, match="re-ordered"):
            read_label(path, 21, 255)


VOC = voc_palette()
CAMVID = [(128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222)]


@pytest.mark.parametrize(
    ("array", "classes", "void", "palette"),
    [
        ([[0, 3, 15, 255]], 21, 255, VOC),
        ([[0, 3, 15]], 21, 255, VOC[:21]),
        ([[3, 255]], 21, 255, [*VOC[:21], *[(0, 0, 0)] * 235]),
        ([[0, 3, 255]], 21, 255, [*VOC[:255], (255, 255, 255)]),
        ([[0, 3, 21]], 21, 21, [*VOC[:21], VOC[255]]),  # void in VOC's colour of it
        ([[0, 1, 2]], 21, 255, [(i, i, i) for i in range(256)]),
        ([[0, 1]], 21, 255, [(0, 0, 0), (128, 128, 128), (255, 255, 255)]),
        ([[0, 1, 2, 3]], 255, 255, CAMVID),  # its fifth colour is not VOC's
        ([[0, 1, 2, 3]], 5, None, CAMVID[:4]),
        ([[0, 1]], 2, 255, VOC[[0, 15]]),  # people alone, in VOC's colour of them
        ([[0, 1, 3]], 21, 255, VOC[[0, 15, 7, 2]]),  # an optimiser drops what is unused: no. 2
        ([[0, 1]], 21, 255, [*VOC[[0, 15, 7]], *[(0, 0, 0)] * 253]),
    ],
)
def test_other_palettes_are_indices(tmp_path, array, classes, void, palette):
    palette_png(tmp_path / "a.png", array, palette)
    expected = [[255 if value == void else value for value in array[0]]]
    assert read_label(tmp_path / "a.png", classes, void).tolist() == expected


def test_indices_among_coloured_files_are_told(tmp_path):
    Image.fromarray(np.array([[1, 2]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(
        UserError, match=r"a\.png: holds indices of classes, where `colours` is set"
    ):
        read_coloured_label(tmp_path / "a.png", "voc", 3, None)


@pytest.mark.parametrize(
    ("values", "classes", "void", "told"),
    [
        ([[0, 21, 21]], 21, 255, r"21 in 2 pixels.*0 to 20 and 255"),
        ([[0, 255]], 21, None, r"255 in 1 pixels.*only 0 to 20 are"),
        ([[-1, 0]], 3, 255, r"-1 in 1 pixels"),
        ([[70000]], 3, 255, r"70000"),
        ([[0]], 256, None, r"256 classes"),
    ],
)
def test_values_outside_the_classes_are_refused(values, classes, void, told):
    with pytest.raises(UserError, match="L.png: .*" + told):
        check_label(np.array(values), "L.png", classes, void)


def test_void_wins_over_a_class_of_its_index():
    assert check_label(np.array([[0, 1]]), "L.png", 2, 0).tolist() == [[255, 1]]


def test_foreign_colours_are_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8)).save(path)
    with pytest.raises(UserError, match=r"colour-coded.*one \[red, green, blue\] per class"):
        read_label(path, 21, 255)
    with pytest.raises(UserError, match=r"1 colours of 1 pixels.*\(1, 2, 3\)"):
        read_coloured_label(path, "voc", 21, None)
    with pytest.raises(UserError, match="1 colours for 2 classes"):
        read_coloured_label(path, [[0, 0, 0]], 2, None)
    with pytest.raises(UserError, match="same colour"):
        read_coloured_label(path, [[0, 0, 0], [0, 0, 0]], 2, None)


def test_broken_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a\.png: not a readable"):
        read_label(tmp_path / "a.png", 2, None)
    with pytest.raises(UserError, match=r"b\.png: no such"):
        read_label(tmp_path / "b.png", 2, None)
    write_label(tmp_path / "c.png", np.zeros((40, 40), np.uint8))
    whole = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"c\.png: not a readable"):
        read_label(tmp_path / "c.png", 2, None)


@settings(max_examples=30)
@given(array=maps(4, 200))
def test_void_of_vocs_colours_may_be_another_index(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("label") / "a.png"
    Image.fromarray(voc_palette()[array]).save(path)
    read = read_coloured_label(path, "voc", 4, 200)
    np.testing.assert_array_equal(read, np.where(array == 200, 255, array))


@pytest.mark.parametrize("colour", [[0, -1, 0], [0, 256, 0], [0, 0]])
def test_what_is_no_colour_is_refused(tmp_path, colour):
    write_label(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(UserError, match=r"each must be \[red, green, blue\] of 0 to 255"):
        read_coloured_label(tmp_path / "a.png", [colour, colour], 2, None)
