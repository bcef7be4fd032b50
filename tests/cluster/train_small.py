"""Trains a small network on data that differs between ranks; each rank prints one line about how it ended.

The line: `rank R of N: loss A -> B, parameters HASH`. Equal hashes on all ranks mean that gradients were exchanged.
"""

import hashlib

import torch

import ringdp.torch as hvd

STEPS = 60


def main() -> None:
    hvd.init()
    torch.manual_seed(hvd.rank())  # the broadcast has to make the ranks equal
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    inputs = torch.randn(64, 8)
    targets = inputs.mean(dim=1, keepdim=True)  # easy to learn, whatever the data
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    content = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    line = f"rank {hvd.rank()} of {hvd.size()}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, parameters "
    print(line + hashlib.sha256(content).hexdigest()[:16], flush=True)
    hvd.shutdown()


if __name__ == "__main__":
    main()
