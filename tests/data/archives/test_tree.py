"""A folder and a tar are read alike; what could leave the folder is refused."""

from __future__ import annotations

import tarfile

import pytest

from sinewich_jax.data.archives.tar import open_path
from sinewich_jax.errors import DataError
from tests.data.archives.trees import add_member, pack, state

FILES = {"a/one.txt": b"1", "a/b/two.txt": b"two" * 1000, "top.txt": b"", "a/.hidden": b"?"}


@pytest.fixture
def root(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SINEWICH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


FORMS = ("folder", "tar", "dotted", "gz", "bz2", "xz", "pax", "gnu")


def form(root, kind):
    if kind == "folder":
        return root
    if kind == "tar":
        return pack(root, root.parent / "set.tar", prefix="")
    if kind == "dotted":
        return pack(root, root.parent / "set.tar", prefix="./")
    if kind in ("pax", "gnu"):
        target = root.parent / "set.tar"
        code = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}[kind]
        with tarfile.open(target, "w", format=code) as tar:
            tar.add(root, arcname="")
        return target
    return pack(root, root.parent / f"set.tar.{kind}", f"w:{kind}", prefix="")


@pytest.mark.parametrize("kind", FORMS)
def test_all_forms_read_alike(root, kind):
    path = form(root, kind)
    before = state(root)
    with open_path(path) as tree:
        assert tree.files() == ["top.txt"] and tree.folders() == ["a"]
        assert tree.files("a") == ["one.txt"] and tree.folders("a") == ["b"]
        assert tree.files("absent") == [] == tree.folders("absent")
        assert tree.has("a/b/two.txt") and not tree.has("a/b") and not tree.has("b/two.txt")
        assert tree.has_folder("a/b") and not tree.has_folder("top.txt")
        assert {name: tree.read(name) for name in FILES} == FILES
        below = tree.sub("a").sub("b")
        assert below.files() == ["two.txt"] and below.read("two.txt") == FILES["a/b/two.txt"]
        with pytest.raises(DataError, match=r"a.b.three\.txt is not there"):
            below.read("three.txt")
    assert state(root) == before


def test_a_compressed_tar_leaves_nothing_behind(root, cache):
    path = form(root, "gz")
    before = state(root.parent / "set")
    with open_path(path) as tree:
        assert tree.read("a/one.txt") == b"1"
        assert list(cache.iterdir()) == []  # The unpacked copy has no name.
    assert list(cache.iterdir()) == [] and state(root.parent / "set") == before


def test_a_tar_names_its_members(root):
    with open_path(form(root, "tar")) as tree:
        assert tree.sub("a").where("one.txt") == f"{root.parent}/set.tar:a/one.txt"
        with pytest.raises(DataError, match=r"set\.tar:a/none is not there"):
            tree.sub("a").read("none")


EVIL = {
    "a path that leaves the folder": ({"name": "set/../../evil.txt"}, "which leaves the folder"),
    "a path up": ({"name": "../evil.txt"}, "which leaves the folder"),
    "a path up, other slashes": ({"name": "a\\..\\..\\evil"}, "which leaves the folder"),
    "an absolute path": ({"name": "/etc/evil"}, "an absolute path"),
    "an absolute path, other slashes": ({"name": "\\evil"}, "an absolute path"),
    "a drive": ({"name": "C:\\evil"}, "an absolute path"),
    "a link": ({"name": "a/l", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link"),
    "a hard link": ({"name": "a/h", "type": tarfile.LNKTYPE, "linkname": "a/one.txt"}, "is a link"),
    "a device": ({"name": "a/d", "type": tarfile.CHRTYPE}, "is no plain file"),
    "a folder that leaves": ({"name": "../up", "type": tarfile.DIRTYPE}, "which leaves the folder"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_tar_with_a_bad_member_is_refused(root, kind):
    path = form(root, "tar")
    member, message = EVIL[kind]
    add_member(path, **member)
    with open_path(path) as tree, pytest.raises(DataError, match=message) as caught:
        tree.files()
    assert str(path) in str(caught.value) and "expected" in str(caught.value)


def test_of_equal_names_the_last_counts(root):
    path = form(root, "tar")
    add_member(path, "top.txt", b"new")
    with open_path(path) as tree:
        assert tree.read("top.txt") == b"new"


@pytest.mark.parametrize("kind", ["tar", "gz", "xz"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_tar_is_named(root, kind, share):
    (root / "a/big.bin").write_bytes(bytes(range(256)) * 100)
    path = form(root, kind)
    whole = path.read_bytes()
    end = len(whole) if kind != "tar" else whole.rindex(bytes(range(256))) + 256
    path.write_bytes(whole[: int(end * share)])
    with open_path(path) as tree, pytest.raises(DataError, match=rf"{path.name} is (damaged|not)"):
        tree.files()


def test_what_is_no_tar(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"PK\x03\x04" + b"\0" * 2000)
    with open_path(tmp_path / "x.tar") as tree, pytest.raises(DataError, match="is not a tar that"):
        tree.files()
    with pytest.raises(DataError, match="does not exist, expected a folder or a tar"):
        open_path(tmp_path / "y.tar")


def test_a_stamp_changes_with_the_files(root):
    def stamp():
        with open_path(root) as tree:
            return tree.stamp(lambda tree: ("a", "a/b"))

    first = stamp()
    (root / "top.txt").write_bytes(b"elsewhere")
    assert stamp() == first
    (root / "a/b/two.txt").write_bytes(b"owt" * 1000)
    second = stamp()
    (root / "a/three.txt").write_bytes(b"")
    assert len({first, second, stamp()}) == 3
