"""The learning-rate range test: what is suggested for curves that are known, and where the loop ends."""

from __future__ import annotations

import math
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from bigtrain.report import write_report
from bigtrain.report.range_test import RangeTest, judged, range_svg, range_test
from bigtrain.report.read import read_runs
from bigtrain.telemetry.metrics import JsonlLog

RATES = [10 ** (-7 + 7 * step / 99) for step in range(100)]


def curve(loss: Callable[[float], float], noise: float = 0.0) -> RangeTest:
    """The test of `loss(log10 of the rate)`."""
    draws = random.Random(1)
    return judged([(rate, loss(math.log10(rate)) + draws.gauss(0, noise)) for rate in RATES])


def falling(log: float) -> float:
    """From 7 to 3, most steeply at 1e-3; it rises from 1e-2 on."""
    return 7 - 4 / (1 + math.exp(-4 * (log + 3))) + (3 * (log + 2) ** 2 if log > -2 else 0)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_steepest_descent_and_a_tenth_of_the_lowest(noise: float) -> None:
    test = curve(falling, noise)
    assert test.steepest is not None and test.lowest is not None
    assert math.log10(test.steepest) == pytest.approx(-3, abs=0.3)
    assert math.log10(test.lowest) == pytest.approx(-1.9, abs=0.4)
    assert test.sentence.startswith(f"suggested optimizer.lr={test.steepest:.1e}, ")
    assert f"lowest loss: {test.lowest / 10:.1e})" in test.sentence


def test_a_fall_after_the_explosion_is_no_descent() -> None:
    test = curve(lambda log: falling(log) if log < -1 else 40 - 30 * (log + 1))
    assert test.steepest is not None and math.log10(test.steepest) == pytest.approx(-3, abs=0.3)


def test_a_loss_that_falls_to_the_end_wants_a_higher_rate() -> None:
    assert "try a higher optimizer.lr" in curve(lambda log: 7 - math.exp(log)).sentence


def test_without_a_fall_nothing_is_suggested() -> None:
    for test in (curve(lambda log: 7.0), curve(lambda log: 7.0, 0.2), curve(lambda log: 7 + math.exp(log), 0.01)):
        assert test.steepest is None and test.sentence.startswith(
            "No learning rate is suggested: the loss did not fall"
        )
    assert "from 3 log points; 10 are needed" in judged([(1e-3, 3.0), (2e-3, 2.0), (4e-3, 1.0)]).sentence


def test_the_picture() -> None:
    test = curve(falling)
    assert test.steepest is not None
    picture = ElementTree.fromstring(range_svg(test))
    shown = ["".join(each.itertext()) for each in picture.iter() if each.tag == "text"]
    assert {f"1e{power}" for power in range(-7, 1)} <= set(shown) and f"steepest: {test.steepest:.1e}" in shown
    for few in (judged([]), judged([(1e-3, 3.0)])):
        assert range_svg(few) == ""
    for odd in (curve(lambda log: 0.0), judged([(1e-3, 3.0), (2e-3, 2.0)])):
        assert ElementTree.fromstring(range_svg(odd)) is not None


def test_the_report_of_a_range_test_and_of_another_run(tmp_path: Path) -> None:
    for schedule in ("lr_range", "constant"):
        (tmp_path / "config.yaml").write_text(f"schedule: {{_target_: bigtrain.optim.{schedule}}}\n")
        log = JsonlLog(tmp_path, resume_step=None)
        for step, rate in enumerate(RATES):
            log.log(step + 1, "train", {"loss": falling(math.log10(rate)), "lr": rate, "tokens": step})
        log.log(101, "train", {"loss": math.nan, "lr": 2.0, "tokens": 101})
        log.close()
        test = range_test(read_runs([tmp_path])[0])
        page = write_report(tmp_path).read_text()
        assert ("Learning-rate range test" in page) == (test is not None) == (schedule == "lr_range")
        if test is not None:
            assert f"<p class=verdict>{test.sentence}</p>" in page and len(test.losses) == 100
