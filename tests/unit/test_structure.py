"""The measures of the structure count what is there; and the glossary is a table that they read."""

from pathlib import Path

import pytest

from tools.structure import __main__ as command
from tools.structure.rooms import arrows, circles, names_at_the_top
from tools.structure.source import Source
from tools.structure.words import private_words, replaced_words

ROOT = Path(__file__).parents[2]
FILES = {
    "manyeyes/__init__.py": "",
    "manyeyes/py.typed": "",
    "manyeyes/top.py": '"""A module.\n\nThree lines.\n"""\nfrom manyeyes.data import index\nfrom manyeyes.kubeflow.pipelines import graph\n',
    "manyeyes/data/__init__.py": "",
    "manyeyes/data/index.py": "# a picture\nclass Row:\n    def see(self):\n        return 1\n",
    "manyeyes/data/rows/__init__.py": "import manyeyes.data.index\n",
    "manyeyes/model/__init__.py": "class Row: ...\nclass _Row: ...\n",
    "manyeyes/kubeflow/__init__.py": "",
    "manyeyes/weights/README.md": "no code here",
    "pipelines/__init__.py": "",
    "pipelines/graph.py": "def build():\n    from manyeyes import top\n    return top\n",
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "manyeyes/kubeflow/pipelines").symlink_to("../../pipelines")
    return tmp_path


def test_names_at_the_top_are_folders_with_code_and_modules(checkout):
    assert names_at_the_top(checkout / "manyeyes") == ["data", "kubeflow", "model", "top"]


def test_arrows_join_rooms_also_through_a_link_and_inside_functions(checkout):
    source = Source(checkout)
    assert arrows(source, "manyeyes") == {
        ("top", "data"),
        ("top", "pipelines"),
        ("pipelines", "top"),
    }
    assert circles(arrows(source, "manyeyes")) == [["pipelines", "top"]]
    assert arrows(source, "manyeyes.data", inside_only=True) == {("rows", "index")}


def test_a_linked_folder_is_counted_once(checkout):
    names = Source(checkout).modules
    assert "pipelines.graph" in names
    assert not any(name.startswith("manyeyes.kubeflow.") for name in names)


def test_code_lines_are_neither_docstrings_nor_comments(checkout):
    modules = Source(checkout).modules
    assert modules["manyeyes.top"].num_code_lines == 2
    assert modules["manyeyes.data.index"].num_code_lines == 3
    assert modules["manyeyes.data.index"].num_functions == 1
    assert modules["manyeyes.model"].classes == ["Row"]


def test_words_are_looked_for_as_whole_ones(checkout, tmp_path):
    glossary = tmp_path / "glossary.md"
    glossary.write_text(
        "| write | not | for |\n|---|---|---|\n| image | `picture` | a sample |\n| encode | `se`, `see` | x |\n"
    )
    words = replaced_words(glossary)
    assert words == {"picture": "image", "se": "encode", "see": "encode"}
    assert private_words(Source(checkout), words) == {"picture": 1, "see": 1}


def test_one_package_is_installed():
    assert command.installed(ROOT) == ["manyeyes"]


def test_every_measure_of_this_checkout_is_printed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["structure", str(ROOT)])
    monkeypatch.setenv("COLUMNS", "200")
    command.main()
    printed = capsys.readouterr().out
    for what in command.measured(ROOT, with_hops=False):
        assert what in printed
