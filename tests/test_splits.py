import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn.data.splits import resolve, sample
from fcn.errors import UserError

IDS = st.lists(st.text("abc0_", min_size=1, max_size=4), unique=True, min_size=1, max_size=20)


@given(ids=IDS, data=st.data())
def test_a_sample_depends_on_the_ids_alone_and_keeps_their_order(ids, data):
    count = data.draw(st.integers(1, len(ids)))
    chosen = sample(ids, count)
    assert len(chosen) == count and [key for key in ids if key in set(chosen)] == chosen
    assert set(sample(data.draw(st.permutations(ids)), count)) == set(chosen)
    assert set(sample(ids, count - 1)) < set(chosen)
    left = [hashlib.sha256(key.encode()).hexdigest() for key in set(ids) - set(chosen)]
    worst = max(hashlib.sha256(key.encode()).hexdigest() for key in chosen)
    assert all(digest > worst for digest in left)


def test_a_sample_never_changes():
    ids = [f"{i:03}" for i in range(500)]
    chosen = sample(ids, 100)
    assert chosen[:6] == ["010", "023", "031", "042", "050", "057"]  # by sha256sum and sort
    thirds = [sum(low <= int(key) < low + 167 for key in chosen) for low in (0, 167, 334)]
    assert min(thirds) > 20  # from everywhere in the list


def split(tmp_path, expressions, known, subset=False):
    return resolve(expressions, tmp_path, tmp_path, known, subset, "images of here")


def test_samples_of_other_splits(tmp_path):
    (tmp_path / "all.txt").write_text("\n".join("abcdefgh"))
    expressions = {
        "few": {"sample": ["rest", 3]},
        "rest": {"minus": ["all", "two"]},
        "two": {"sample": ["all", 2]},
        "all": "all.txt",
    }
    found, notes = split(tmp_path, expressions, "abcdefgh")
    assert notes == [] and len(found["few"]) == 3 and len(found["two"]) == 2
    assert set(found["few"]) | set(found["two"]) <= set("abcdefgh")
    assert not set(found["few"]) & set(found["two"])
    found, notes = split(tmp_path, {"few": {"sample": ["all", 5]}, "all": "all.txt"}, "hcd", True)
    assert found == {"few": ["c", "d", "h"], "all": ["c", "d", "h"]}
    assert notes == ["all: 3 of 8 ids are in this subset", "few: 3 of 5 ids are in this subset"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["all", 9], "few: all has 8 ids, fewer than the 9"),
        (["all", 0], r"few: sample takes \[NAME, COUNT\], not \['all', 0\]"),
        (["all", True], r"sample takes \[NAME, COUNT\]"),
        (["all", 2.5], r"sample takes \[NAME, COUNT\]"),
        (["all"], r"sample takes \[NAME, COUNT\]"),
        ("all", r"sample takes \[NAME, COUNT\], not 'all'"),
        (["few", 1], "few is made from itself"),
        (["none", 1], "few names none, which is not there"),
    ],
)
def test_wrong_samples(tmp_path, wanted, message):
    (tmp_path / "all.txt").write_text("\n".join("abcdefgh"))
    with pytest.raises(UserError, match=message):
        split(tmp_path, {"all": "all.txt", "few": {"sample": wanted}}, "abcdefgh")


def test_a_list_may_go_beyond_a_declared_subset_but_not_past_it(tmp_path):
    (tmp_path / "val.txt").write_text("a\nb\nc")
    (tmp_path / "wrong.txt").write_text("a.jpg\nb.jpg")
    with pytest.raises(UserError, match=r"val\.txt: 1 of 3 ids of split val have no file in ima"):
        split(tmp_path, {"val": "val.txt"}, "ac")
    found, notes = split(tmp_path, {"val": "val.txt"}, "ac", True)
    assert found == {"val": ["a", "c"]} and notes == ["val: 2 of 3 ids are in this subset"]
    with pytest.raises(UserError, match=r"2 of 2 ids of split val .*; list ids without extension"):
        split(tmp_path, {"val": "wrong.txt"}, "ab", True)


def test_lists_and_what_is_made_from_them(tmp_path):
    (tmp_path / "all.txt").write_text("\ufeffa\r\n b\n\nc\nd\n", "utf-8")
    for name in "bd":
        (tmp_path / f"{name}.txt").write_text(name)
    expressions = {
        "all": "all.txt",
        "b": "b.txt",
        "d": "d.txt",
        "left": {"minus": ["all", "b", "d"]},
        "both": {"union": ["d", "left", "all"]},
        "whole": {"sample": ["both", 4]},
    }
    found, notes = split(tmp_path, expressions, "abcd")
    assert notes == [] and found["all"] == ["a", "b", "c", "d"] and found["left"] == ["a", "c"]
    assert found["both"] == found["whole"] == ["d", "a", "c", "b"]
