"""Whether draws follow a distribution, by tests that fail by chance once in a thousand runs at most."""

import numpy as np
from scipy import stats

NO_CHANCE = 1e-3  # of a p-value below this we say: not the same distribution


def assert_same_distribution(ours, theirs, of: object = ""):
    ours, theirs = np.asarray(ours, dtype=np.float32), np.asarray(theirs, dtype=np.float32)  # so that ties stay ties
    assert stats.ks_2samp(ours, theirs, method="asymp").pvalue > NO_CHANCE, of


def assert_same_shares(ours, theirs, of: object = ""):
    """Chi-square test of two samples of a few distinct values."""
    values = sorted(set(np.asarray(ours).tolist()) | set(np.asarray(theirs).tolist()))
    table = [[(np.asarray(sample) == value).sum() for value in values] for sample in (ours, theirs)]
    assert len(values) == 1 or stats.chi2_contingency(table).pvalue > NO_CHANCE, of


def assert_uniform(counts):
    assert stats.chisquare(counts).pvalue > NO_CHANCE


def assert_share(marked, prob: float):
    assert stats.binomtest(int(np.sum(marked)), len(marked), prob).pvalue > NO_CHANCE


def assert_uncorrelated(first, second):
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / np.sqrt(len(first))
