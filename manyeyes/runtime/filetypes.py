"""What a file really is, by its first bytes, where it is not what was asked for.

A picture, a table of conversations or weights that cannot be read are most often another thing
under their name: a pointer of Git LFS, the page of a server that wanted a login. The error then
names that, and not what a reader of the expected format stumbled over.
"""

from __future__ import annotations

import codecs

HEAD_BYTES = 512
"""As much of a file as is needed to name it."""

_LFS = b"version https://git-lfs.github.com/spec/"
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (b"BZh", "bzip2-compressed; unpack it first"),
    (b"\xfd7zXZ\x00", "xz-compressed; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"PAR1", "a Parquet table; export it as JSON lines"),
    (b"ARROW1", "an Arrow table; export it as JSON lines"),
    (b"%PDF-", "a PDF document; convert it"),
    (b"%!PS", "a PostScript document; convert it"),
    (b"GGUF", "a GGUF file; get the weights as safetensors"),
    (b"\xff\xfe\0\0", "UTF-32 text; save it as UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32 text; save it as UTF-8"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
)
_MARKUP: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", "an HTML page (the answer of a web server?); fetch the file itself"),
    (b"<html", "an HTML page (the answer of a web server?); fetch the file itself"),
    (b"<svg", "an SVG drawing; convert it to PNG"),
    (b"<?xml", "an XML document; fetch or convert the file itself"),
)
_BRANDS: dict[bytes, str] = {
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        "a HEIC picture; convert it to JPEG or PNG",
    ),
    b"qt  ": "a video; give a picture",
    **dict.fromkeys(
        (b"isom", b"iso2", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4V ", b"3gp4", b"3gp5"),
        "a video; give a picture",
    ),
}
_WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
_JPEG_XL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")


def is_lfs_pointer(head: bytes) -> bool:
    """Tell whether a file is what Git LFS leaves in the place of one that was not fetched."""
    return head.startswith(_LFS)


def another_thing(head: bytes) -> str | None:
    """Name what a file is and what to do, to stand after "it is"; None where that is not known.

    Args:
        head: the first ``HEAD_BYTES`` bytes of the file, or all of it.
    """
    if is_lfs_pointer(head):
        return "a Git LFS pointer and not the file itself; run 'git lfs pull'"
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return _BRANDS[head[8:12]]
    if head.startswith(_JPEG_XL):
        return "a JPEG XL picture; convert it to JPEG or PNG"
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    for start, name in _MARKUP:
        if text.startswith(start):
            return name
    return _wide_text(head)


def not_utf8(data: bytes) -> str | None:
    """Say what a file is that is not UTF-8 text, and what to do; None where it is such text.

    Args:
        data: the whole file.
    """
    other = another_thing(data[:HEAD_BYTES])
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"0x{data[error.start]:02x}"
        return other or f"not UTF-8 text (the byte {byte} in line {line}); save it as UTF-8"
    return other if b"\0" in data[:HEAD_BYTES] else None


def _wide_text(head: bytes) -> str | None:
    """Recognise text of two or four bytes a character that no mark at its beginning tells."""
    if b"\0" not in head:
        return None
    for name in _WIDE:
        try:
            text = codecs.getincrementaldecoder(name)().decode(head[:HEAD_BYTES])
        except UnicodeDecodeError:
            continue
        plain = sum(character.isascii() for character in text)
        if 2 * plain > len(text) > 1 and all(
            character.isprintable() or character in "\t\r\n" for character in text
        ):
            return f"{name} text without a mark that says so; run 'iconv -f {name} -t UTF-8' on it"
    return None
