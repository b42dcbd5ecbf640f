"""How often the network is compiled, over batches as community datasets give them."""

import pytest

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow]

BATCHES = 200
# Seen: 4 after the first batch, for a layer of each kind; 6 after the second, the first of at most 4,096
# tokens; 7 after the 16th; 9 where all samples have one camera.
MOST_GRAPHS = 9


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("flags", [(), ("float8",)], ids=("bfloat16", "float8"))
def test_few_graphs_serve_all_lengths(on_null_gpu, flags):
    found = on_null_gpu("community", str(BATCHES), *flags)
    assert len(set(found["tokens"])) > 15
    assert len(found["graphs"]) == BATCHES
    assert found["graphs"][0] == 4
    assert found["graphs"][-1] <= MOST_GRAPHS
    assert found["broken"] == {}
