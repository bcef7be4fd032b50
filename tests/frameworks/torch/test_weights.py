"""How numbers of samples travel in a bucket's dtype: exact for every count of ranks."""

import pytest
import torch

from ringdp.torch.weights import BITS, code_for, whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 64, 257, 1000, 4608])
def test_sums_are_exact(dtype, ranks):
    code = code_for(dtype, ranks)
    total = torch.zeros(code.elements, dtype=dtype)
    numbers = [((1 << BITS - 8) - 1 if rank % 2 else 977 * rank) for rank in range(ranks)]
    for rank, number in enumerate(numbers):
        total += torch.tensor(
            code.encode(number, rank), dtype=dtype
        )  # rounds after every addition, if it has to
    assert int(code.decode(total)) == sum(numbers)


def test_the_code_is_short():
    assert [code_for(torch.float32, n).elements for n in (2, 8, 1000)] == [3, 3, 4]
    assert code_for(torch.float64, 2).elements == 1 and code_for(torch.bfloat16, 2).elements == 7


def test_what_is_a_whole_number():
    assert [whole(n) for n in (0, 3, 4.0, torch.tensor(5), torch.tensor([6]), True)] == [0, 3, 4, 5, 6, 1]
