"""Several processes train as one: the same gradients as a single process with the whole batch."""

import pytest
import ranks
import torch
from apart import begin


@pytest.fixture(scope="module", params=[(2, False), (4, False), (2, True)], ids=["two", "four", "uneven"])
def processes(request, tmp_path_factory):
    """What each of several processes found."""
    count, uneven = request.param
    folder = tmp_path_factory.mktemp("ranks")
    running = [begin(ranks.process, rank, count, uneven, str(folder)) for rank in range(count)]
    done = [each.end() for each in running]
    assert [each.returncode for each in done] == [0] * count, done
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.parametrize("name", ranks.CASES)
def test_gradients_and_weights_are_those_of_one_process(processes, name):
    expected = ranks.train(name, slice(None))
    for found in processes:
        for got, want in zip(found[name], expected, strict=True):
            assert torch.allclose(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["infonce", "h-scl", "sscl"])
def test_without_gathering_gradients_would_differ(name):
    """The negative control: the mean over two processes that see only their own half."""
    halves = [ranks.train(name, ranks.share(rank, 2))[0] for rank in range(2)]
    whole = ranks.train(name, slice(None))[0]
    assert not torch.allclose((halves[0] + halves[1]) / 2, whole, rtol=1e-2)
