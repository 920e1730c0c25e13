"""Files that are whole or not there."""

import pytest
import torch

from fcn.errors import UserError
from fcn.files import atomic_dir, read_object, write_json
from fcn.weights.named import save


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "a").write_text("mine")
    with (
        pytest.raises(UserError, match="a: a file where a folder is to be"),
        atomic_dir(tmp_path / "a"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("value", [[], {}, None, "x", {"a": 1}])
def test_objects_have_their_keys(tmp_path, value):
    write_json(tmp_path / "x.json", value)
    with pytest.raises(UserError, match=r"x\.json: not written by this program; delete it and run"):
        read_object(tmp_path / "x.json", "a", "b")
    write_json(tmp_path / "x.json", {"a": None, "b": 2})
    assert read_object(tmp_path / "x.json", "a", "b") == {"a": None, "b": 2}


def test_weights_may_be_read_by_those_who_may_read_their_neighbours(tmp_path):
    save(tmp_path / "model.safetensors", {"x": torch.zeros(2)}, {})
    write_json(tmp_path / "train.json", {})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
