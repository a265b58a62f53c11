"""Names looked up on first use: objects, submodules, and what is neither."""

from __future__ import annotations

import pytest

from sinewich_jax import lazy


def test_objects_submodules_and_unknown_names():
    look_up, listing, names = lazy.attach("os", ("path",), {"join": "path"})
    import os.path

    assert look_up("path") is os.path and look_up("join") is os.path.join
    assert listing() == names == ["join", "path"]
    with pytest.raises(AttributeError, match="module 'os' has no attribute 'nothing'"):
        look_up("nothing")


def test_an_object_wins_over_a_submodule_of_its_name():
    look_up, _, names = lazy.attach("os", ("path",), {"path": "path"})
    assert names == ["path"]
    with pytest.raises(AttributeError):
        look_up("path")  # os.path has no attribute path: it was the object that was asked for
