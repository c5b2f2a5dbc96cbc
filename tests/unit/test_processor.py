"""The processor: canvases and ids."""

import pytest
import torch
from PIL import Image

from manyeyes.errors import UserError
from manyeyes.model.processor import MEAN_COLOUR, Processor


def test_a_square_picture_of_the_right_size_is_taken_as_it_is():
    picture = Image.new("RGB", (16, 16))
    picture.putpixel((3, 5), (10, 20, 30))
    canvas = Processor(16).pixels([picture])
    assert canvas.shape == (1, 3, 16, 16)
    assert canvas.dtype == torch.uint8
    assert canvas[0, :, 5, 3].tolist() == [10, 20, 30]
    assert int((canvas != 0).sum()) == 3


@pytest.mark.parametrize("size", [(40, 20), (20, 40)])
def test_a_rectangle_is_centred_on_the_mean_colour(size):
    canvas = Processor(40).pixels([Image.new("RGB", size, (255, 255, 255))])[0]
    if size[1] > size[0]:
        canvas = canvas.transpose(1, 2)
    background = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)
    assert (canvas[:, :10] == background[:, None, None]).all()
    assert (canvas[:, 10:30] == 255).all()
    assert (canvas[:, 30:] == background[:, None, None]).all()


def test_pictures_of_any_size_and_mode_become_one_tensor():
    pictures = [Image.new("L", (9, 31)), Image.new("RGBA", (50, 50)), Image.new("P", (8, 8))]
    assert Processor(24).pixels(pictures).shape == (3, 3, 24, 24)


def test_no_pictures_are_an_empty_tensor():
    assert Processor(24).pixels([]).shape == (0, 3, 24, 24)


def test_the_mean_colour_is_clips():
    assert MEAN_COLOUR == (122, 116, 104)


def test_settings_survive_a_file(tmp_path):
    processor = Processor(96, (1, 2, 3))
    processor.save(tmp_path)
    assert Processor.load(tmp_path) == processor


def test_missing_settings_are_an_error(tmp_path):
    with pytest.raises(UserError) as caught:
        Processor.load(tmp_path)
    assert str(caught.value) == f"There is no processor.json in {tmp_path}."


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty; get it again"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark; save it as UTF-8 without one"),
    ],
)
def test_settings_that_are_not_json_are_an_error(data, reason, tmp_path):
    path = tmp_path / "processor.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        Processor.load(tmp_path)
    assert str(caught.value) == f"Cannot read {path}: it {reason}."


@pytest.mark.parametrize("text", ["[]", "{}", '{"canvas_size": "x", "background": [1, 2, 3]}'])
def test_wrong_settings_are_an_error(text, tmp_path):
    (tmp_path / "processor.json").write_text(text)
    with pytest.raises(UserError, match="is not a processor's settings"):
        Processor.load(tmp_path)
