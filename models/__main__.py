"""What networks there are, and what one consists of.

python -m models list
python -m models info resnet18 --num_classes 100
"""

import argparse
import os
import sys

from . import MODELS, ModelError, build, canonical, entry


def own_size(row):
    """32, or the nearest that the network takes."""
    return max(32, row.min_size)


def own_channels(row):
    """3; of texts a usual vocabulary."""
    return 50_000 if row.text else 3


def empty(name, row, num_classes=10, in_channels=0, image_size=0, width=0):
    """The network with shapes but no values: building it takes no memory, and fetches no weights."""
    import torch

    unfetched = {"pretrained": False} if "pretrained" in row.settings else {}
    shape = {"in_channels": in_channels or own_channels(row), "image_size": image_size or own_size(row),
             "width": width}
    with torch.device("meta"):
        return build(name, num_classes, **shape, **unfetched).eval()


def parameters(module):
    return sum(weight.numel() for weight in module.parameters())


def inputs(row, batch, in_channels, image_size, device="cpu"):
    """Inputs of a network of this row, of no particular values."""
    import torch

    if row.text:
        return torch.zeros(batch, image_size, dtype=torch.int32, device=device)
    return torch.zeros(batch, in_channels, image_size, image_size, device=device)


def measure(network, x):
    """(MACs of one input x on the meta device, [(name, output shape, parameters, MACs) of each direct child with
    weights]).

    MACs are the multiply-adds of convolutions and matrix products, as torch counts them.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shapes = {}

    def note_shape(name):
        def hook(module, inputs, output):
            shapes[name] = tuple(output.shape[1:])

        return hook

    children = {name: child for name, child in network.named_children() if parameters(child)}
    handles = [child.register_forward_hook(note_shape(name)) for name, child in children.items()]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    counts = counter.get_flop_counts()
    root = type(network).__name__
    stages = []
    for name, shape in shapes.items():
        flops = sum(counts.get(f"{root}.{name}", {}).values())  # a stage without products is not listed
        stages.append((name, shape, parameters(children[name]), flops // 2))
    return counter.get_total_flops() // 2, stages


def short(count):
    """5.2 G, 555.4 M, 12.0 k, 17"""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return str(count)


def print_table(rows, right=()):
    """Columns as wide as their widest cell; those whose numbers are in `right` are set flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row))
        print("  ".join(cells).rstrip())


def list_models():
    rows = [("name", "aliases", "parameters", "width argument", "note")]
    for name, row in MODELS.items():
        try:
            count = f"{parameters(empty(name, row)):,}"
        except ModelError:  # timm is not installed
            count = "-"
        rows.append((name, ", ".join(row.aliases), count, row.width, row.note))
    print_table(rows, right={2})
    print("\nalso: wrn-DEPTH-FACTOR (DEPTH = 6n + 4), wrn-DEPTH-FACTOR-bias (its convolutions have biases), "
          "timm:NAME (needs timm), package.module:factory")


def info(args):
    name = canonical(args.name)
    row = entry(name)
    size = args.image_size or own_size(row)
    channels = args.in_channels or own_channels(row)
    network = empty(name, row, args.num_classes, channels, size, args.width)
    macs, stages = measure(network, inputs(row, 1, channels, size, "meta"))

    sizes = f"{row.min_size}x{row.min_size}" + ("" if row.fixed_size else " or larger")
    if row.text:
        sizes = "any length"
    if row.multiple > 1:
        sizes += f", a multiple of {row.multiple}"
    print(f"name        {name}")
    print(f"aliases     {', '.join(row.aliases) or '-'}")
    print(f"note        {row.note}")
    print(f"input       {'token ids of any vocabulary' if row.text else 'any number of channels'}; {sizes}")
    print(f"--width     {row.width or '-'}")
    print(f"parameters  {parameters(network):,} for {args.num_classes} classes")
    one = f"a text of {size} tokens" if row.text else f"an image of {channels}x{size}x{size}"
    print(f"MACs        {short(macs)} for {one}\n")
    table = [("stage", "output", "parameters", "MACs")]
    for stage, shape, count, stage_macs in stages:
        table.append((stage, "x".join(map(str, shape)), f"{count:,}", short(stage_macs)))
    print_table(table, right={2, 3})


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="all names with their aliases, parameters and width arguments")
    one = verbs.add_parser("info", help="parameters, MACs and stages of one network")
    one.add_argument("name", help="a name or alias of the list, wrn-D-K, or timm:NAME")
    one.add_argument("--num_classes", type=int, default=10, help="outputs (default: %(default)s)")
    one.add_argument("--in_channels", type=int, default=0, help="channels of an image (default: 3); of texts, words")
    one.add_argument("--image_size", type=int, default=0, help="pixels of a side (default: 32 where it fits)")
    one.add_argument("--width", type=int, default=0, help="the width argument (default: the network's own)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    try:
        list_models() if args.verb == "list" else info(args)
    except ModelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
