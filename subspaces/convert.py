"""Make a checkpoint of apple/learning-subspaces one of ours: a network, or the line, curve or simplex that it holds.

    python -m subspaces.convert epoch_160_iter_62560.pt --net resnet20_proj --family line --out line.safetensors

There the vertices of a layer are its weight, weight1, weight2, …; a curve's weight2 is its middle vertex. BatchNorm
statistics were a running average over random points; they are re-estimated at the centre, as ours are. What comes out
goes wherever a run goes: --load_net line.safetensors --point t=0.25.
"""

import re

from landscape import cli, runs
from landscape.errors import ContentError, UsageError
from subspaces.train import FAMILIES

BLOCK = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}
# Names of layers there, and here. ImageNet networks have torchvision's names in both.
NAMES = (
    (r"^conv$", "conv1"), (r"^bn$", "bn1"),
    (r"^blocks\.(\d+)\.", lambda m: f"layer{int(m[1]) // 3 + 1}.{int(m[1]) % 3}."),
    (r"^conv1\.0$", "conv1"), (r"^conv1\.1$", "bn1"),
    (r"^conv(\d)_x\.(\d+)\.residual_function\.(\d)$", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.{BLOCK[m[3]]}"),
    (r"^conv(\d)_x\.(\d+)\.shortcut\.", lambda m: f"layer{int(m[1]) - 1}.{m[2]}.shortcut."),
)  # fmt: skip


def make_parser():
    parser = cli.Parser("python -m subspaces.convert", __doc__)
    parser.add_argument("file", metavar="FILE", help="the checkpoint")
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="what is written")
    parser.add_argument("--net", default="resnet20_proj", metavar="NAME",
                        help="resnet20_proj, resnet18, resnet50, or torchvision.models:wide_resnet50_2")
    parser.add_argument("--family", default="line", choices=[f for f in FAMILIES if f != "chain"],
                        help="what was trained; standard: one network")
    parser.add_argument("--dataset", default="CIFAR10", metavar="NAME", help="what it was trained on")
    parser.add_argument("--normalize", default="imagenet", metavar="KIND",
                        help="as there: imagenet for CIFAR-10 too; TinyImageNet 0.480,0.448,0.397/0.276,0.269,0.282")
    parser.add_argument("--image_size", type=cli.natural, default=0, help="pixels a side; 0: the data set's own")
    parser.add_argument("--bn_images", type=cli.natural, default=5000,
                        help="training images from which BatchNorm statistics are re-estimated; 0: all")
    parser.add_argument("--as_stored", action="store_true", help="keep the statistics of the file; needs no images")
    parser.add_argument("--data_root", default=None, metavar="DIR", help="where the data sets lie")
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    if not args.out.endswith(".safetensors"):
        raise UsageError(f"--out {args.out}: a name that ends in .safetensors is expected")
    from landscape import data as datasets
    from landscape import evaluate, subspace, weights

    held, _ = runs.read_weights(args.file)
    entry = datasets.entry(args.dataset, args.data_root)
    size = args.image_size or entry.image_size
    architecture = {"name": args.net, "num_classes": len(entry.classes), "in_channels": entry.channels,
                    "image_size": size, "width": 0}
    described = {"architecture": architecture, "preprocessing": {
        "dataset": args.dataset, "image_size": size, "channels": entry.channels,
        **datasets.normalization(args.normalize, entry)}}
    network = runs.build(architecture)
    vertices, buffers = split(held, network.state_dict())
    one = args.family == "standard"
    if one != (len(vertices) == 1):
        raise UsageError(f"{args.file} holds {len(vertices)} vertices: it is {'' if one else 'not '}a subspace; give "
                         "another --family")
    if args.family == "curve":
        vertices = [vertices[0], vertices[2], vertices[1]] if len(vertices) == 3 else vertices
    rule = None if one else subspace.rule(args.family, len(vertices))
    middle = weights.combine(vertices, [1.0] if one else rule.centre.tolist())
    runs.fill(network, {**middle, **buffers}, f"checkpoint {args.file}", architecture)
    if not args.as_stored:
        images = datasets.load(args.dataset, args.data_root, val_size=0, image_size=size).train
        evaluate.reestimate_bn(network, images, described["preprocessing"],
                               rows=images.some_rows(args.bn_images))
        buffers = {k: network.state_dict()[k] for k in buffers}
    if one:
        runs.save_weights(args.out, network.state_dict(), described)
    else:
        space = subspace.Subspace(network, vertices, rule)
        space.load_state_dict({**space.state_dict(), **{f"buffers.{k}": v for k, v in buffers.items()}})
        described["subspace"] = {"family": args.family, "vertices": rule.m, "granularity": "network", "tied": {}}
        runs.save_weights(args.out, space.state_dict(), described)
    print(f"{len(vertices)} vertices of {args.net}: {args.out}")
    return 0


def split(held, own):
    """([a dict of parameters for each vertex], buffers) under our names. own: the state_dict of the network here; a
    last layer that is a 1x1 convolution there becomes linear, and has a bias of zeros where ours has one."""
    vertices, buffers = {}, {}
    for key, w in held.items():
        stem, _, last = key.rpartition(".")
        for pattern, name in NAMES:
            stem = re.sub(pattern, name, f"{stem}." if pattern.endswith("\\.") else stem).rstrip(".")
        if stem == "fc" and "linear.weight" in own:
            stem = "linear"
        match = re.fullmatch(r"(weight|bias)(\d*)", last)
        if not match:
            buffers[f"{stem}.{last}"] = w
            continue
        name = f"{stem}.{match[1]}"
        if name in own and own[name].dim() == 2 and w.dim() == 4:
            w = w.flatten(1)
        vertices.setdefault(int(match[2] or 0), {})[name] = w
    if sorted(vertices) != list(range(len(vertices))):
        raise ContentError(f"the checkpoint has weights numbered {sorted(vertices)}: one is missing")
    for vertex in vertices.values():
        for name in ("linear.bias", "fc.bias"):
            if name in own and name not in vertex:
                vertex[name] = own[name].new_zeros(own[name].shape)
    return [vertices[k] for k in sorted(vertices)], buffers


if __name__ == "__main__":
    cli.run(main)
