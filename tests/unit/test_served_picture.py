"""Pictures of a request: bytes in any of their forms, and never a file of the server."""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from manyeyes.data.dataset.images import as_image
from manyeyes.errors import UserError
from manyeyes.serve.served_picture import read_served


def written(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RED = Image.new("RGB", (5, 3), (250, 10, 10))
PNG = written(RED)
TEXT = base64.b64encode(PNG).decode()
FORMS = {
    "bytes": PNG,
    "bytearray": bytearray(PNG),
    "memoryview": memoryview(PNG),
    "base64": TEXT,
    "base64 in lines": "\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)),
    "data URL": f"data:image/png;base64,{TEXT}",
    "data URL with a parameter": f"data:image/png;charset=utf-8;base64,{TEXT}",
    "Pillow": RED,
    "Pillow, palette": RED.convert("P", palette=Image.Palette.ADAPTIVE),
    "Pillow, CMYK": RED.convert("CMYK"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_picture(form):
    read = as_image(read_served(FORMS[form], "image"))
    assert read.mode == "RGB"
    assert read.size == (5, 3)
    assert np.abs(np.asarray(read).astype(int) - np.asarray(RED)).max() <= 1


@pytest.mark.parametrize("value", [None, math.nan, np.nan])
def test_no_picture_is_none(value):
    assert read_served(value, "image") is None


NO_PATH = (
    "image is not base64: encode the bytes of the picture file; a served model opens no file by "
    "its path."
)
NO_PICTURE = "image: the file is not a picture; "


@pytest.mark.parametrize(
    "path",
    ["{file}", "/etc/passwd", "/dev/zero", "/proc/self/environ", "file:///etc/passwd",
     "../secret.png", "http://127.0.0.1:1/x.png", "data:,x", "\x00"],
)  # fmt: skip
def test_a_path_is_not_opened(tmp_path, path):
    (tmp_path / "there.png").write_bytes(PNG)
    with pytest.raises(UserError) as error:
        read_served(path.format(file=tmp_path / "there.png"), "image")
    assert str(error.value) == NO_PATH or str(error.value).startswith(NO_PICTURE)


def test_a_path_that_is_base64_by_chance_is_not_opened():
    with pytest.raises(UserError) as error:
        read_served("/etc/foo", "image")
    assert str(error.value).startswith(NO_PICTURE)


@pytest.mark.parametrize(("value", "kind"), [(3, "int"), ({"path": "x"}, "dict"), ([], "list")])
def test_what_is_no_picture_is_one_sentence(value, kind):
    with pytest.raises(UserError) as error:
        read_served(value, "image")
    assert str(error.value) == (
        f"image holds a {kind}: give the bytes of a picture file, the same in base64 or as a data "
        "URL, or a picture of Pillow."
    )


def test_a_picture_of_pillow_whose_file_is_cut_is_one_sentence(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(written(Image.effect_noise((64, 64), 90))[:400])
    with pytest.raises(UserError) as error, Image.open(path) as cut:
        read_served(cut, "image")
    assert str(error.value) == (
        "image: the picture is truncated or damaged and cannot be decoded; fetch or write it again."
    )
