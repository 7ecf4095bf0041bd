"""The campaigns in small: the soundness campaign finds nothing, and finds what is broken on purpose."""

from __future__ import annotations

import pytest

from campaigns.networks import random_subject
from campaigns.soundness import Campaign, table

#: Networks of which auto_LiRPA 0.3's CROWN bounds in patches mode were no bounds: grouped convolutions, oblong images.
ONCE_WRONG = (11, 25, 73, 88, 93, 96, 97)


@pytest.mark.parametrize("number", ONCE_WRONG)
def test_networks_whose_bounds_were_wrong_once(number):
    campaign = Campaign()
    campaign.networks = 1  # without the slow verifiers
    campaign.examine(random_subject(number), number, samples=40)
    assert campaign.violations == 0, table(campaign)
    assert campaign.tallies["crown"].boxes > 0


def test_a_short_campaign_finds_no_violation():
    campaign = Campaign(seed=1000)
    campaign.run(checks=120_000, samples=60)
    assert campaign.violations == 0, table(campaign)
    assert {"ibp", "crown", "alpha_crown", "bab", "mip", "input-bab"} <= set(campaign.tallies)
