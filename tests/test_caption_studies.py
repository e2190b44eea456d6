"""Does a study of photos and captions go from the contest's files to a report, with rivals that read the captions?"""

from tests import running


def test_smoke(tmp_path):
    result = running.run("configs/captions.py:smoke", tmp_path / "run")
    assert result.returncode == 0, result.stderr[-2000:]
    rows = {row["id"]: row for row in running.ledger(tmp_path / "run")}
    assert set(rows) == {"text", "joined"} and all(row["status"] == "finished" for row in rows.values())
    assert int(rows["joined"]["parameters"]) > int(rows["text"]["parameters"])
    page = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert "key words of the caption" in page and "SIMULATED DATA" in page
    again = running.run("configs/captions.py:smoke", tmp_path / "run")
    assert again.returncode == 0 and "finished" in again.stdout
