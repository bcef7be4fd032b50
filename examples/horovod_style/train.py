"""A training script as Horovod users write it. Only the import line is another: it was `import horovod.torch as hvd`.

Start it with: ringdp run -n 2 examples/horovod_style/train.py --checkpoints checkpoints
"""

import argparse
import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import ringdp.torch as hvd

parser = argparse.ArgumentParser(description="Handwritten digits, the Horovod way")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=32, help="images a step on each rank")
parser.add_argument("--base-lr", type=float, default=0.025, help="learning rate for one rank")
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--checkpoints", required=True, help="folder; training resumes from the last one in it")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(1024, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def metric_average(value, name):
    return hvd.allreduce(torch.tensor(value), name=name).item()


def checkpoint_file(args, epoch):
    return os.path.join(args.checkpoints, f"checkpoint-{epoch}.pt")


def make_loader(dataset, args, shuffle):
    # The sampler gives each rank its part of the data.
    sampler = DistributedSampler(dataset, num_replicas=hvd.size(), rank=hvd.rank(), shuffle=shuffle)
    return DataLoader(dataset, batch_size=args.batch_size, sampler=sampler), sampler


def train(model, optimizer, loader, sampler, epoch):
    model.train()
    sampler.set_epoch(epoch)
    total = 0.0
    for data, target in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data), target)
        loss.backward()
        optimizer.step()
        total += loss.item()
    loss = metric_average(total / len(loader), "avg_train_loss")
    if hvd.rank() == 0:
        print(f"epoch {epoch}: loss {loss:.4f}", flush=True)


def test(model, loader, sampler):
    model.eval()
    loss, accuracy = 0.0, 0.0
    with torch.no_grad():
        for data, target in loader:
            output = model(data)
            loss += F.cross_entropy(output, target, reduction="sum").item()
            accuracy += output.argmax(dim=1).eq(target).sum().item()
    loss = metric_average(loss / len(sampler), "avg_loss")
    accuracy = metric_average(accuracy / len(sampler), "avg_accuracy")
    if hvd.rank() == 0:
        print(f"held-out: loss {loss:.4f}, accuracy {accuracy:.4f}", flush=True)


def main():
    args = parser.parse_args()
    hvd.init()
    torch.manual_seed(args.seed)

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    train_loader, train_sampler = make_loader(TensorDataset(images[360:], labels[360:]), args, shuffle=True)
    test_loader, test_sampler = make_loader(TensorDataset(images[:360], labels[:360]), args, shuffle=False)

    # Rank 0 looks for checkpoints: other hosts may not have the same files.
    resume_from = 0
    if hvd.rank() == 0:
        os.makedirs(args.checkpoints, exist_ok=True)
        for epoch in range(args.epochs, 0, -1):
            if os.path.exists(checkpoint_file(args, epoch)):
                resume_from = epoch
                break
    resume_from = hvd.broadcast(torch.tensor(resume_from), root_rank=0, name="resume_from").item()

    model = Net()
    # The batch of a step grows with the number of ranks, and the learning rate with it.
    optimizer = torch.optim.SGD(model.parameters(), lr=args.base_lr * hvd.size(), momentum=0.9)
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.none,
        op=hvd.Average,
    )

    # Rank 0 alone reads the checkpoint; the others get it from rank 0.
    if resume_from > 0 and hvd.rank() == 0:
        print(f"resuming after epoch {resume_from}", flush=True)
        checkpoint = torch.load(checkpoint_file(args, resume_from))
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    for epoch in range(resume_from + 1, args.epochs + 1):
        train(model, optimizer, train_loader, train_sampler, epoch)
        test(model, test_loader, test_sampler)
        if hvd.rank() == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, checkpoint_file(args, epoch))


if __name__ == "__main__":
    main()
