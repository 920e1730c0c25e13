"""Scores of the VOC server: what is read, what is refused, and what reading them costs."""

import json
import subprocess
import sys

import pytest
import yaml

from fcn.errors import UserError
from fcn.report.server import server_scores


def scores(tmp_path, text):
    path = tmp_path / "server_scores.yaml"
    path.write_text(text)
    return server_scores(path)


GOOD = {
    "table": "pami_table4",
    "row": "FCN-8s",
    "voc2012_test": 12.5,
    "run": "voc2011/fcn8s",
    "seed": 0,
    "date": "2030-01-02",
}


def test_scores_are_read(tmp_path):
    assert isinstance(server_scores(), list)
    assert scores(tmp_path, "[]") == scores(tmp_path, "# none yet") == []
    assert scores(tmp_path, json.dumps([GOOD])) == [GOOD]
    assert scores(tmp_path, yaml.safe_dump([GOOD]).replace("'", "")) == [GOOD]  # a bare date


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "pami_tabel4"}, "0.table: no table 'pami_tabel4'; did you mean pami_table4"),
        ({"row": "FCN-8"}, "0.row: no row 'FCN-8'; did you mean FCN-8s"),
        ({"table": "table1"}, "0.table: table1 shows no score of the server"),
        ({"voc2012_test": 101}, "0.voc2012_test"),
        ({"voc2012_test": 0.622}, "62.2, not 0.622"),
        ({"voc2012_test": "67"}, "is not a number"),
        ({"voc2012_test": None}, "is not a number"),
        ({"date": "January"}, "not of an allowed form"),
        ({"score": 3}, "no key 'score'"),
        ({"run": "fcn8s"}, "not of an allowed form"),
        ({"seed": -1}, "0.seed"),
    ],
)
def test_wrong_scores_are_one_sentence(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        scores(tmp_path, json.dumps([GOOD | change]))
    assert "server_scores.yaml" in str(caught.value)


def test_a_score_needs_its_keys(tmp_path):
    for key in ("table", "row", "run", "seed", "date", "voc2012_test"):
        entry = {k: v for k, v in GOOD.items() if k != key}
        with pytest.raises(UserError, match=r"server_scores\.yaml: 0: .*(missing|voc2011_test)"):
            scores(tmp_path, json.dumps([entry]))
    for text in ("{}", "- 3", "3"):
        with pytest.raises(UserError, match=r"is not a (list|mapping)"):
            scores(tmp_path, text)


def test_a_report_with_scores_needs_no_pytorch(tmp_path):
    path = tmp_path / "server_scores.yaml"
    path.write_text(json.dumps([GOOD]))
    code = (
        "import sys; from pathlib import Path; import fcn.report, fcn.report.server as server; "
        "assert server.server_scores(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
