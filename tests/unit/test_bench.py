"""`bigtrain bench`: figures, pages, regressions, and a suite that really runs."""

import copy
import json
import subprocess
import sys

import _bench
import peers
import pytest
from _figures import figure, ratio, regressions, short, targets
from _pages import comparison, markdown, picture
from _suite import FailedError, in_turn, process

from bigtrain import bench
from bigtrain.cli import main


def result(ours=(1.0, 1.1, 0.9), theirs=(2.0, 2.2, 1.8), cpu="one", better="lower"):
    return {
        "suite": "peers", "about": "Two.", "date": "2026-01-02T00:00:00+00:00", "commit": "abcdef0123456789",
        "uncommitted_changes": False, "hardware": {"cpu": cpu, "cores": 2, "memory_gib": 8, "gpus": []},
        "versions": {"torch": "2.13.0", "litgpt": None}, "load_average": [[0.1, 0, 0], [1.0, 0, 0]], "config": {},
        "metrics": {"step": {"unit": "ms", "scale": 1e3, "better": better}}, "pictured": ["step"],
        "groups": {"tiny": {"bigtrain": [{"step": x} for x in ours], "other": [{"step": x} for x in theirs]}},
        "targets": [{"text": "half", "group": "tiny", "of": ["bigtrain", "step"], "over": ["other", "step"],
                     "at_most": 0.5},
                    {"text": "gone", "group": "tiny", "of": ["bigtrain", "step"], "over": ["third", "step"],
                     "at_most": 0.5}],
        "notes": ["third is not installed"],
    }  # fmt: skip


def test_an_interval_holds_the_truth_as_often_as_it_says():
    import random

    draw = random.Random(0)
    rounds = [[draw.gauss(10, 2) for _ in range(5)] for _ in range(2000)]
    inside = sum(found.low <= 10 <= found.high for found in map(figure, rounds))
    assert 0.94 < inside / len(rounds) < 0.99
    assert figure([3.0]).low == -float("inf")  # one round says nothing of its spread


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12345.6, "12,346"), (3.14159, "3.14"), (0.00123456, "0.00123"), (99.96, "100.0")]
)
def test_three_digits_are_shown(value, text):
    assert short(value) == text


def test_ratios_are_taken_round_by_round():
    slow_round = result(ours=(1.0, 5.0, 1.0), theirs=(2.0, 10.0, 2.0))  # a neighbour slowed both
    found = ratio(slow_round, "tiny", ("bigtrain", "step"), ("other", "step"))
    assert found == (0.5, 0.5, 0.5)


def test_a_target_is_reached_missed_or_not_measured():
    assert [held.reached for held in targets(result())] == [True, None]
    assert targets(result(ours=(3.0, 3.0, 3.0)))[0].reached is False


def test_only_what_lies_outside_of_both_intervals_has_become_worse():
    assert regressions(result(), result()) == []
    assert regressions(result(ours=(1.2, 1.0, 1.1)), result()) == []  # noise
    slower = result(ours=(2.0, 2.1, 2.05))
    assert [line for line in regressions(slower, result()) if "bigtrain: step was 1,000 ± 311" in line]


def test_faster_is_no_regression_and_higher_may_be_better():
    faster = result(ours=(0.5, 0.5, 0.51), theirs=(1.0, 1.0, 1.01))
    assert regressions(faster, result()) == []
    assert regressions(
        result(ours=(0.5, 0.5, 0.51), better="higher"), result(better="higher")
    )[0].startswith("peers: tiny, bigtrain: step was")  # fmt: skip


def test_times_of_another_machine_are_not_compared_but_ratios_are():
    twice = result(ours=(2.0, 2.2, 1.8), theirs=(4.0, 4.4, 3.6), cpu="slow")
    assert regressions(twice, result()) == []
    assert "times are not compared, only ratios" in comparison(twice, result())
    lost = result(ours=(2.0, 2.0, 2.01), theirs=(8.0, 8.1, 8.0), cpu="slow")
    assert [line for line in regressions(lost, result()) if "over bigtrain's" in line]


def test_the_page_and_the_picture_come_from_the_json_alone(tmp_path):
    plain = json.loads(json.dumps(result()))
    page = markdown(plain)
    assert "| bigtrain |      3 |         1,000 ± 311 |" in page
    assert "(2.00×)" in page and "- third is not installed" in page and "not measured" in page
    assert "busy" not in page
    plain["load_average"][0][0] = 7.0
    assert "**The machine was busy" in markdown(plain)
    picture(plain, tmp_path / "new" / "p.png")
    assert (tmp_path / "new" / "p.png").stat().st_size > 5000


def test_a_peer_with_other_losses_is_marked_and_not_counted():
    found = {
        "bigtrain": [{"step": 1, "losses": [5.0, 4.0]}],
        "same": [{"step": 1, "losses": [5.0, 4.00001]}],
        "other": [{"step": 1, "losses": [5.0, 4.1]}],
    }
    notes: list[str] = []
    peers.compare_losses("tiny", found, notes)
    assert list(found) == ["bigtrain", "same"] and "losses" not in found["same"][0]
    assert "other differ" in notes[1] and "does not count" in notes[1]


def test_a_peer_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(peers._sides, "NEEDS", {"Nobody's": "no_such_package"})
    notes: list[str] = []
    assert peers.missing(notes) == {"Nobody's"}
    assert notes == ["Nobody's is not installed: pip install 'bigtrain[benchmark]' (or pip install no_such_package)"]


def test_a_case_that_fails_is_left_out_with_its_last_line():
    notes: list[str] = []
    cases = {"good": lambda: {"x": 1}, "bad": lambda: {"x": process(["-c", "raise SystemExit('out of luck')"])}}
    assert in_turn(cases, 2, lambda text: None, notes) == {"good": [{"x": 1}, {"x": 1}]}
    assert notes == ["bad is left out: out of luck"]
    with pytest.raises(FailedError, match="out of luck"):
        cases["bad"]()


def says(capsys, *argv):
    code = main(["bench", *argv])
    return code, capsys.readouterr().err


def test_wrong_input_is_one_message(capsys, tmp_path):
    assert says(capsys, "checkpont") == (2, "bigtrain: there is no suite 'checkpont'. Did you mean 'checkpoint'?\n")
    assert says(capsys, "--agianst", "x")[0] == 2
    assert says(capsys, "--rounds", "0") == (2, "bigtrain: --rounds must be at least 1, not 0.\n")
    assert "--rounds" in says(capsys, "--rounds", "many")[1]
    code, said = says(capsys, "--against", str(tmp_path / "none.json"))
    assert code == 2 and "cannot be read: No such file" in said
    (tmp_path / "bad.json").write_text("[1]")
    assert "is not a result of bigtrain bench" in says(capsys, "--against", str(tmp_path / "bad.json"))[1]
    (tmp_path / "peers.json").write_text(json.dumps(result()))
    code, said = says(capsys, "imports", "--against", str(tmp_path / "peers.json"))
    assert code == 2 and "is of suite peers, and imports will run" in said


def test_without_a_checkout_one_message_says_where_the_benchmarks_are(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    code, said = says(capsys, "peers")
    assert code == 2 and said.count("\n") == 1 and "checkout" in said


def test_help_names_every_suite_without_importing_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bigtrain", "bench", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "| torch\n" not in done.stderr
    assert all(f"\n  {name}" in done.stdout for name in _bench.SUITES)


def test_a_suite_runs_writes_its_files_and_holds_them_against_a_baseline(capsys, tmp_path):
    assert main(["bench", "checkpoint", "--small", "--rounds", "2", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(tmp_path) and "| dcp.async_save" in out
    found = json.loads((tmp_path / "checkpoint.json").read_text())
    assert list(found["groups"]["1 MB"]) == ["bigtrain", "torch.save", "dcp.save", "dcp.async_save"]
    assert found["commit"] and found["versions"]["torch"] and found["config"]["parameters"] == 100_000
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.json", "checkpoint.png", "README.md"}

    baseline = copy.deepcopy(found)  # as it would be if training had hardly stood still, and as evenly
    for rounds in baseline["groups"]["1 MB"].values():
        for number, one in enumerate(rounds):
            one.update(blocked=1e-9 + 1e-12 * number, durable=100.0, load=100.0)
    for rounds in found["groups"]["1 MB"].values():
        for number, one in enumerate(rounds):
            one.update(blocked=1e-3 + 1e-6 * number)
    worse = regressions(found, baseline)
    assert any(line.startswith("checkpoint: 1 MB, bigtrain: blocked was") for line in worse)
    assert not any("durable was 100" in line for line in worse)


def test_a_regression_is_exit_1(capsys, monkeypatch, tmp_path):
    now = result(ours=(2.0, 2.1, 2.05))
    monkeypatch.setattr(_bench, "suite", lambda name: type("Done", (), {"run": lambda *_: now}))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "peers.json").write_text(json.dumps(result()))
    assert main(["bench", "peers", "--out", str(tmp_path), "--against", str(tmp_path / "old")]) == 1
    said = capsys.readouterr()
    assert "regression: peers: tiny, bigtrain: step was 1,000 ± 311 ms and is 2,050" in said.err
    assert "figures and ratios" in said.out
    assert main(["bench", "peers", "--out", str(tmp_path), "--against", str(tmp_path)]) == 0  # what was just written


def test_a_folder_that_cannot_be_is_refused_before_anything_is_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_bench, "suite", lambda name: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    assert main(["bench", "peers", "--out", str(tmp_path / "file" / "results")]) == 2
    assert f"--out {tmp_path}/file/results cannot be a folder: " in capsys.readouterr().err


def test_the_page_keeps_the_suites_of_earlier_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(_bench, "suite", lambda name: type("Done", (), {"run": lambda *_: result()}))
    (tmp_path / "imports.json").write_text(json.dumps(result() | {"suite": "imports"}))
    (tmp_path / "imports.png").write_bytes(b"drawn before")
    assert main(["bench", "peers", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "![peers](peers.png)" in page and "![imports](imports.png)" in page
    assert (tmp_path / "imports.png").read_bytes() == b"drawn before"
