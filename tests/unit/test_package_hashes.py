"""The digests in the images' locks are those of the files that pip would take there."""

import http.server
import threading

import pytest

from tools.images import package_hashes

FILES = [
    "demo-1.2.tar.gz",
    "demo-1.2-py3-none-any.whl",
    "demo-1.2-cp311-cp311-macosx_11_0_arm64.whl",
    "demo-1.2-cp311-cp311-manylinux_2_39_x86_64.whl",
    "demo-1.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "demo-1.2-cp38-abi3-manylinux_2_17_x86_64.whl",
    "demo-1.3-cp311-cp311-manylinux_2_17_x86_64.whl",
    "demo-0.1-py36+-none-any.whl",
]


def digest(number):
    return f"{number:064x}"


@pytest.fixture
def index():
    links = "".join(
        f'<a href="../files/{name.replace("+", "%2B")}#sha256={digest(number)}">{name}</a><br>'
        for number, name in enumerate(FILES)
    )

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/demo/"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(links.encode() if found else b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(package_hashes, "HASHES", tmp_path / "hashes.lock")
    monkeypatch.setattr(package_hashes, "read_hashes", lambda: {"kept==1.0": "sha256:as before"})
    monkeypatch.setattr(package_hashes, "write_locks", lambda: None)
    return tmp_path


def run(monkeypatch, index, *lines):
    monkeypatch.setattr(package_hashes, "_all_lines", lambda: lines)
    return package_hashes.main(["--index", index])


def test_the_best_wheel_for_the_images_is_named(index, folder, monkeypatch):
    assert run(monkeypatch, index, "demo==1.2", "kept==1.0") == 0
    expected = f"demo==1.2 sha256:{digest(4)}\nkept==1.0 sha256:as before\n"
    assert (folder / "hashes.lock").read_text() == expected


def test_of_what_is_published_as_source_the_archive_is_named(index, folder, monkeypatch):
    monkeypatch.setattr(package_hashes, "SOURCE_ONLY", ("demo",))
    assert run(monkeypatch, index, "demo==1.2") == 0
    assert (folder / "hashes.lock").read_text() == f"demo==1.2 sha256:{digest(0)}\n"


def test_a_version_without_a_file_that_fits_is_said_and_nothing_written(
    index, folder, monkeypatch, capsys
):
    assert run(monkeypatch, index, "demo==2.0") == 2
    assert capsys.readouterr().err == (
        f"{index} has no wheel for the images' platform of demo==2.0; choose another version.\n"
    )
    assert not (folder / "hashes.lock").exists()


def test_an_unknown_package_is_said(index, folder, monkeypatch, capsys):
    assert run(monkeypatch, index, "other==1.0") == 2
    assert capsys.readouterr().err == (f"404 Client Error: Not Found for url: {index}/other/\n")
