"""Votes for experts, against a case worked by hand and against numpy."""

import numpy as np
import pytest
import torch

from toolkit.maths.retrieval import normalized, vote, whitened

# Two instances of expert 0, one of expert 1, one of expert 2, and four prompts of a task.
LIBRARY = torch.tensor([(1.0, 0), (0.8, 0.6), (0, 1), (-0.6, 0.8)])
OWNERS = [0, 0, 1, 2]
QUERIES = torch.tensor([(0.9, 0.1), (0.1, 0.9), (0.6, 0.8), (0.96, 0.28)])


def test_the_nearest_instances_and_the_votes_are_those_worked_by_hand() -> None:
    found = vote(QUERIES, LIBRARY, OWNERS, 3)
    assert found.nearest.tolist() == [0, 2, 1, 0]
    assert found.counts.tolist() == [3, 1, 0]
    assert found.order == [0, 1, 2] and found.margin == 0.5
    assert found.shares([0, 1, 2]) == [0.75, 0.25, 0]


def test_a_long_embedding_is_no_nearer_than_a_short_one() -> None:
    stretched = LIBRARY * torch.tensor([[1.0], [1], [1], [1000]])
    assert vote(3 * QUERIES, stretched, OWNERS, 3).nearest.tolist() == [0, 2, 1, 0]


def test_of_equally_near_instances_and_equal_votes_the_earlier_counts() -> None:
    twice = torch.cat([LIBRARY, LIBRARY])
    assert vote(QUERIES, twice, [3, 3, 2, 1, 0, 0, 0, 0], 4).counts.tolist() == [0, 0, 1, 3]
    queries = torch.tensor([(1.0, 0), (-1, 0)])
    tied = vote(queries, LIBRARY, [0, 1, 1, 2], 3)
    assert tied.counts.tolist() == [1, 0, 1] and tied.order == [0, 2, 1] and tied.margin == 0


def test_the_nearest_are_numpys_and_the_shares_of_some_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, library = (torch.randn(n, 8, generator=generator) for n in (32, 60))
    owners = [i % 5 for i in range(60)]
    found = vote(queries, library, owners, 5)

    q, lib = queries.double().numpy(), library.double().numpy()
    cosines = q @ lib.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(lib, axis=1)
    assert found.nearest.tolist() == cosines.argmax(axis=1).tolist()
    assert found.counts.sum() == 32
    first, second = found.order[:2]
    assert found.margin == (found.counts[first] - found.counts[second]) / 32
    assert sum(found.shares(found.order[:3])) == pytest.approx(1)


def test_one_expert_alone_has_the_whole_margin() -> None:
    assert vote(QUERIES, LIBRARY, [0, 0, 0, 0], 1).margin == 1


def test_an_embedding_without_a_direction_is_refused() -> None:
    for value in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="zero, infinite or NaN"):
            normalized(torch.tensor([(1.0, 0), (value, 0)]))
    with pytest.raises(ValueError, match="no votes"):
        vote(QUERIES, LIBRARY, OWNERS, 3).shares([2])


def test_what_all_texts_have_no_longer_decides_after_whitening() -> None:
    # Two topics in the last axis; the others vary more, and the first has a common part.
    generator = torch.Generator().manual_seed(0)
    topic = torch.tensor([1.0, -1.0]).repeat(200)
    noise = 5 * torch.randn(400, 5, generator=generator) + torch.tensor([50.0, 0, 0, 0, 0])
    texts = torch.cat([noise, topic[:, None]], dim=1)
    library, queries = texts[:200], texts[200:]
    owners = [0, 1] * 100
    before = vote(queries[::2], library, owners, 2).counts[0]
    library, asked = whitened(library, queries[::2], 0.1)
    assert before < 80 and vote(asked, library, owners, 2).counts[0] > 90


def test_whitened_embeddings_have_the_covariance_that_the_shrinkage_leaves() -> None:
    library = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.tensor([1.0, 2, 3, 4])
    )
    made, same = whitened(library, library, 0.1)
    assert torch.equal(made, same)
    covariance = np.cov(library.double().numpy().T)
    values = np.linalg.eigvalsh(covariance)
    expected = values / (values + 0.1 * values.mean())
    np.testing.assert_allclose(np.cov(made.numpy().T), np.diag(expected), atol=1e-9)
    with pytest.raises(ValueError, match="equal"):
        whitened(torch.ones(3, 2), library[:, :2], 0.1)
