"""A timing says how much of the processor it had."""

import time

import torch

from unspoken.agents.bench.engine.share import Timing, figures, said, timed

CPU = torch.device("cpu")


def timing(seconds: float, share: float | None) -> Timing:
    return Timing(seconds=seconds, cpu_share=share)


def test_who_sleeps_has_no_share_of_the_processor() -> None:
    """Time that others had, or nobody, is no work of this process."""
    assert timed(lambda: time.sleep(0.05), CPU).cpu_share < 0.5


def test_one_busy_thread_has_the_share_of_one_thread() -> None:
    """The share is of torch's threads, of which a loop of Python keeps one busy."""

    def busy() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    share = timed(busy, CPU).cpu_share
    assert 0 < share <= 1.1 / torch.get_num_threads()


def test_a_row_of_timings_below_nine_tenths_is_contended() -> None:
    """The medians count, and the words say so too."""
    busy = [timing(1.0, 0.5), timing(3.0, 0.8), timing(2.0, 0.99)]
    row = figures(busy)
    assert row == {
        "seconds": 2.0,
        "fastest_s": 1.0,
        "rounds": 3,
        "cpu_share": 0.8,
        "contended": True,
    }
    assert said(busy) == "2.000 s (CPU share 0.80, contended)"
    assert figures([timing(1.0, 0.95)])["contended"] is False


def test_an_accelerator_has_no_share_of_the_processor() -> None:
    """There a waiting process is no busy machine."""
    assert "contended" not in figures([timing(1.0, None)])
    assert said([timing(1.0, None)]) == "1.000 s"
