"""The campaigns in small: the soundness campaign finds nothing, and finds what is broken on purpose."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from campaigns import networks
from campaigns.mutations import MUTATIONS, Mutation, mutated, violations
from campaigns.networks import random_subject
from campaigns.questions import random_question
from campaigns.soundness import Campaign, table
from expressive_losses.bounds import compat, lirpa
from expressive_losses.verify.evaluation import computing_in

ROOT = Path(__file__).parent.parent
#: Networks of which auto_LiRPA 0.3's CROWN bounds in patches mode were no bounds: grouped convolutions, oblong images.
ONCE_WRONG = (10, 16, 25, 29, 45, 57, 66)


@pytest.mark.parametrize("number", ONCE_WRONG)
def test_networks_whose_bounds_were_wrong_once(number, monkeypatch):
    """As they were then: auto_LiRPA does not take one of them with layers rescaled."""
    monkeypatch.setattr(networks, "_rescale", lambda network, choose: False)
    campaign = Campaign()
    campaign.examine(random_subject(number), number, samples=40)
    assert campaign.violations == 0, table(campaign)
    assert campaign.tallies["crown"].boxes > 0


def test_a_short_campaign_finds_no_violation():
    campaign = Campaign(seed=1000)
    campaign.run(math.inf, networks=6, samples=60)
    assert campaign.violations == 0, table(campaign)
    assert {"ibp", "crown", "alpha_crown", "bab", "bab, nodes", "mip", "input-bab"} <= set(campaign.tallies)
    assert campaign.close_calls > 0


@pytest.mark.parametrize("kind", ["wired vectors", "wired images"])
def test_networks_that_are_no_chains_are_examined(kind):
    """Constants, both signs of a layer, a layer beside its ReLU: auto_LiRPA 0.3 had no bounds of some of them."""
    campaign = Campaign()
    for number in range(3):
        campaign.examine(random_subject(number, kind), number, samples=40)
    assert campaign.violations == 0, table(campaign)
    assert campaign.tallies["crown"].boxes > 0 and "fast path" not in campaign.features


@pytest.mark.skipif(str(compat.lirpa_version()) >= "0.4", reason="what release 0.3 bounds wrongly")
def test_what_the_package_itself_finds_to_be_no_bounds_is_a_violation(monkeypatch):
    """It is refused there, before the campaign's own points could show it."""
    monkeypatch.setattr(lirpa, "has_arithmetic_with_constants", lambda bounded: False)
    subject, campaign = random_subject(43, "wired images"), Campaign()
    with computing_in(subject.dtype):
        campaign._bound(subject, "crown", random_question(subject, 43, 40))
    assert campaign.tallies["crown"].violations == 1
    assert "bounds of this network are none" in campaign.examples[0]


def test_a_network_whose_layers_are_rescaled_is_the_same_function(monkeypatch):
    """Powers of two, so bit by bit: only the sizes of the neurons are other ones."""
    seeds = [seed for seed in range(30) if "rescaled" in random_subject(seed).features]
    rescaled = {seed: random_subject(seed) for seed in seeds}
    rescale = networks._rescale
    monkeypatch.setattr(networks, "_rescale", lambda network, choose: rescale(copy.deepcopy(network), choose))
    for seed, subject in rescaled.items():
        x, plain = torch.rand(8, *subject.network.shape, dtype=subject.dtype), random_subject(seed)
        assert subject.logits(x).equal(plain.logits(x)) or subject.statistics is not None
        assert not all(
            a.equal(b) for a, b in zip(subject.network.parameters(), plain.network.parameters(), strict=True)
        )
    assert len(seeds) > 3


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_mutation_still_applies(mutation):
    """A line that has moved on takes its mutation along: otherwise the campaign would be tested on nothing."""
    assert mutated(mutation) != (ROOT / "expressive_losses" / mutation.module).read_text()


@pytest.mark.parametrize(
    "name", ["elision: W_y - W_j without absolute values", "specification: f_j - f_y in place of f_y - f_j"]
)
def test_the_campaign_notices_what_is_broken_on_purpose(name):
    assert violations(next(one for one in MUTATIONS if one.name == name))


def test_an_empty_mutation_is_not_noticed():
    harmless = Mutation("nothing", "types.py", "return eye[labels].unsqueeze(1) - eye[others]", "return eye[labels]"
                        ".unsqueeze(1) - 1 * eye[others]")  # fmt: skip
    assert violations(harmless, networks=4) == 0


def test_a_short_crash_campaign_loses_nothing():
    """Killed, stopped, out of disk, damaged, twice at once: resumed, it is the run that was left alone."""
    words = [sys.executable, "-W", "ignore", "-m", "campaigns.crash", "--kills", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout
