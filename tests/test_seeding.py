"""Streams are functions of seed and names alone; fork leaves the global state as it was."""

import subprocess
import sys

import torch

from landscape import seeding


def test_a_stream_is_the_same_in_another_process():
    code = ("from landscape import seeding as s\n"
            "print(s.key(3, 'order', 7), s.numpy_stream(3, 'x').integers(1 << 40))")
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            for _ in range(2)]
    assert said[0] == said[1]
    assert said[0].split() == [str(seeding.key(3, "order", 7)), str(seeding.numpy_stream(3, "x").integers(1 << 40))]


def test_seed_and_every_name_matter():
    keys = {seeding.key(s, *names) for s in (0, 1, -1) for names in [("order", 1), ("order", 2), ("augment", 1), ()]}
    assert len(keys) == 12
    assert all(0 <= k < 1 << 63 for k in keys)


def test_a_stream_ignores_what_was_drawn_before():
    first = torch.rand(4, generator=seeding.stream(1, "a"))
    torch.rand(100)
    assert torch.equal(first, torch.rand(4, generator=seeding.stream(1, "a")))


def test_fork_draws_from_its_stream_and_restores_the_global_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeding.fork(5, "init"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeding.fork(5, "init"):
        assert torch.equal(torch.rand(3), inside)
    assert not torch.equal(inside, expected)
