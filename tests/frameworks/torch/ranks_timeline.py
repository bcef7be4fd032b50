"""The timeline of a training step."""

import json

from frameworks.torch.helpers import loss, parameters, reduced, wrap

import ringdp.torch as hvd


def test_buckets_and_their_stages(tmp_path):
    path = tmp_path / "trace.json"
    params = parameters()
    optimizer = wrap(params)
    hvd.start_timeline(str(path))
    for _ in range(2):
        optimizer.zero_grad()
        loss(params).backward()
        assert reduced(params)
        optimizer.step()
    hvd.stop_timeline()
    if hvd.rank() > 0:
        assert not path.exists()
        return
    events = json.loads(path.read_text())["traceEvents"]
    buckets = {
        e["tid"] for e in events if e["ph"] == "M" and e["args"]["name"].startswith("bucket 0 of plan ")
    }
    slices = [e for e in events if e["ph"] == "X" and e["tid"] in buckets]
    assert [e["name"] for e in slices] == ["allreduce", "SUBMIT", "REDUCE"] * 2  # it needs no agreement
    assert all(e["args"]["bytes"] >= 4 * sum(p.numel() for p in params) for e in slices if e["args"])
