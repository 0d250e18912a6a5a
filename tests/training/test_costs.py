import torch

from lorax.training.costs import Meter, peak_mb


def test_the_peak_is_that_of_the_block():
    with Meter() as meter:
        block = torch.ones(40_000_000 // 4)
        del block
    assert meter.peak_mb > 40 and meter.seconds > 0
    assert peak_mb() > 0
