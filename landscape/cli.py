"""What every script's command line shares: a strict parser, argument groups, --smoke, exit codes.

Defaults live in the add_argument lines here and in the scripts, and nowhere else. Precedence: defaults, then each
--config file in order, then flags. Nothing here imports torch.
"""

import argparse
import copy
import difflib
import errno
import itertools
import os
import re
import signal
import sys
import textwrap
from pathlib import Path

import models
from landscape import parallel
from landscape.errors import FileProblem, Refusal, UsageError
from models import ModelError

TRAIN_MODES = ("naive", "mixup", "cutmix", "adv", "adv_mix", "soft_distillation", "hard_distillation", "distillation")

# The epochs at which a schedule halves the rate: of the deep ensembles' re-implementation and of the paper.
DROPS = {"drop_a": (9, 19, 29), "drop_paper": (10, 20, 30)}

NOISE_KINDS = ("symmetric", "uniform", "asymmetric")

# The most that --smoke leaves of each of these: the whole path, in seconds, on a CPU.
SMOKE_CAPS = {"epochs": 1, "train_size": 96, "val_size": 32, "bs": 48, "planes": 3, "resolution": 8, "warmup": 0,
              "points": 6, "directions": 2}

# Settings that change what a training computes and not how long it takes: runs that differ in these alone cost alike.
SAME_COST = ("seed", "init_seed", "order_seed", "augment_seed", "data_seed", "noise_seed", "plane_seed", "noise_rate",
             "noise_file", "lr", "momentum", "adam_eps", "weight_decay", "scheduler", "cycles", "milestones", "gamma",
             "warmup", "label_smoothing", "mixup_alpha", "cutmix_beta", "adv_epsilon", "adv_step", "distill_temp",
             "normalize")


SEEDS = ("init_seed", "order_seed", "augment_seed")  # what repetitions of a training differ in
UNSEEN = ("snapshots", "eval_every")  # of the settings that name a run, those that leave its weights as they are


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the example at the head as it stands and shows each default that says something."""

    def _get_help_string(self, action):
        silent = action.default in (None, "", False, argparse.SUPPRESS) or "default" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse with --config, --print_config, suggestions for misspelt flags, and a record of what names a run.

    script: how the user calls it ("main.py", "python -m regions.plot"); a config's `script:` must equal it.
    naming: the settings (dests) whose values make the name of the run folder.
    """

    def __init__(self, script, doc):
        words = script if script.startswith("python") else f"python {script}"
        super().__init__(prog=words, description=textwrap.dedent(doc).strip(), formatter_class=Help,
                         allow_abbrev=False)
        self.script, self.naming = script, []
        self.add_argument("--config", action="append", default=None, metavar="FILE.yaml",
                          help="defaults from a YAML file; flags win; may be repeated")
        self.add_argument("--print_config", action="store_true",
                          help="print every setting with its origin, and stop")

    def group(self, title, named=False):
        """An argument group; with named=True its settings are part of the run's name."""
        group = self.add_argument_group(title)
        if named:
            plain = group.add_argument

            def add(*flags, **options):
                action = plain(*flags, **options)
                self.naming.append(action.dest)
                return action

            group.add_argument = add
        return group

    def format_help(self):
        """The description, which opens with an example, first; then the flags."""
        formatter = self._get_formatter()
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return f"{self.description}\n\n{formatter.format_help()}"

    def error(self, message):
        raise UsageError(f"{message} (see {self.prog} --help)")

    def settings(self, argv=None):
        """Parse argv (default sys.argv[1:]) into a namespace; raises UsageError or FileProblem.

        given lists what a flag or a config has set. Two entries are for resolve: defaults (before any config) and
        naming.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if argv and argv[0].endswith((".yaml", ".yml")):
            argv = ["--config", *argv]
        argv = joined(argv)
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config", action="append", default=[])
        origin, defaults = {}, {a.dest: a.default for a in self._actions}
        for path in first.parse_known_args(argv)[0].config:
            values = self.read_config(path)
            self.set_defaults(**values)
            origin.update(dict.fromkeys(values, path))
        args, unknown = self.parse_known_args(argv)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings if flag not in ("-h", "--help")]
            flags = [u for u in unknown if u.startswith("-")] or unknown
            self.error(f"unknown argument {flags[0]}{suggestion(flags[0].split('=')[0], known)}")
        if args.print_config:
            print(self.shown(args, origin, argv), end="")
            raise SystemExit(0)
        flags = {a.split("=")[0] for a in argv if a.startswith("-")}
        args.given = [a.dest for a in self._actions if a.dest in origin or flags & set(a.option_strings)]
        args.defaults, args.naming = defaults, list(self.naming)
        return args

    def read_config(self, path):
        """The settings of a YAML file as {dest: value}, each checked as if it had been given as a flag."""
        import yaml

        try:
            text = Path(path).read_text()
        except OSError as e:
            raise FileProblem(f"config {path}: {e.strerror.lower()}") from None
        except UnicodeDecodeError:
            raise UsageError(f"config {path}: not a text file") from None
        try:
            values = yaml.safe_load(text) or {}
        except yaml.YAMLError as e:
            raise UsageError(f"config {path}: not YAML: {' '.join(str(e).split())}") from None
        if not isinstance(values, dict):
            raise UsageError(f"config {path}: a mapping of settings is expected, such as 'epochs: 10'")
        script = values.pop("script", self.script)
        if script != self.script:
            command = script if str(script).startswith("python") else f"python {script}"
            raise UsageError(f"config {path} is for another script: {command} --config {path}")
        actions = {f.lstrip("-").replace("-", "_"): a for a in self._actions for f in a.option_strings}
        pairs = yaml.compose(text, yaml.SafeLoader).value if values else []
        lines = {}
        for line, key in ((k.start_mark.line + 1, k.value) for k, _ in pairs):
            if key in lines:
                raise UsageError(f"config {path}, line {line}: {key} stands in line {lines[key]} already")
            lines[key] = line
        return dict(self.checked(f"config {path}, line {lines.get(str(key), '?')}", key, value, actions)
                    for key, value in values.items())

    def checked(self, where, key, value, actions):
        action = actions.get(key)
        if action is None or action.dest in ("config", "print_config", "help"):
            raise UsageError(f"{where}: unknown key {key!r}{suggestion(str(key), actions)}")
        if isinstance(action, argparse._StoreTrueAction | argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise UsageError(f"{where}: {key} is true or false, not {value!r}")
            return action.dest, value
        if value is None and action.default is None:
            return action.dest, None
        if isinstance(value, bool | dict) or value is None:
            raise UsageError(f"{where}: {key} takes a value, not {value!r}")
        if isinstance(value, list) and not action.nargs:
            value = ",".join(map(str, value))
        try:
            if isinstance(value, list):
                value = [self._get_value(action, str(v)) for v in value]
            else:
                value = self._get_value(action, str(value))
            for v in value if isinstance(value, list) else [value]:
                self._check_value(action, v)
        except argparse.ArgumentError as e:
            raise UsageError(f"{where}: {e}") from None
        return action.dest, value

    def shown(self, args, origin, argv):
        """The resolved settings as YAML, each with where it came from."""
        import yaml

        given = {a.split("=")[0] for a in argv if a.startswith("-")}
        lines = [f"script: {self.script}\n"]
        for action in self._actions:
            if action.dest in ("help", "config", "print_config"):
                continue
            source = "flag" if given & set(action.option_strings) else origin.get(action.dest, "default")
            value = yaml.safe_dump(getattr(args, action.dest), default_flow_style=True, width=10**6)
            line = f"{action.dest}: {value.removesuffix('...' + chr(10)).strip()}"
            lines.append(f"{line:<40}  # {source}\n")
        return "".join(lines)


def joined(argv):
    """argv with '--imgs -1,2,3' as '--imgs=-1,2,3': argparse takes a value that begins with a minus for a flag."""
    out = []
    for word in argv:
        if out and re.fullmatch(r"-\d[\d,.-]*", word) and re.fullmatch(r"--\w+", out[-1]):
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out


def suggestion(word, known):
    """'; did you mean X?' for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def whole(text):
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def positive(text):
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def natural(text):
    value = whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def side(text):
    """Points a side of a grid; dbViz's scripts took 50.0 too."""
    value = number(2)(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(value)


def number(low=None, high=None, above=None):
    """A type for add_argument: a finite float in [low, high], and > above."""
    def check(text):
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        ok = abs(value) <= 1e30  # what float32 holds with room to spare; false for NaN
        ok = ok and (low is None or value >= low) and (high is None or value <= high)
        if not ok or (above is not None and value <= above):
            bounds = [f"at least {low}" * (low is not None), f"at most {high}" * (high is not None),
                      f"above {above}" * (above is not None)]
            bounds = " and ".join(b for b in bounds if b) or "that is finite"
            raise argparse.ArgumentTypeError(f"{text} is not a number {bounds}")
        return value
    check.__name__ = "number"
    return check


def several_of(known):
    """A type for add_argument: some of the known words, between commas."""
    def check(text):
        words = text.split(",")
        if wrong := [w for w in words if w not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return list(dict.fromkeys(words))
    return check


def several(kind):
    """A type for add_argument: values of another type between commas, none of them twice; of whole numbers ranges too,
    as in 0-4,7."""
    def check(text):
        values = []
        for word in text.split(","):
            ends = kind is whole and re.fullmatch(r"(\d+)-(\d+)", word.strip())
            if ends and int(ends[2]) < int(ends[1]):
                raise argparse.ArgumentTypeError(f"{word} ends before it begins")
            values += range(int(ends[1]), int(ends[2]) + 1) if ends else [kind(word)]
        if twice := [v for i, v in enumerate(values) if v in values[:i]]:
            raise argparse.ArgumentTypeError(f"{text} holds {twice[0]} twice")
        return values
    return check


def add_network(parser):
    g = parser.group("network", named=True)
    g.add_argument("--net", default="ResNet", metavar="NAME",
                   help="a model's name (python -m models list), timm:NAME, or package.module:factory")
    g.add_argument("--width", "--widen_factor", type=natural, default=0,
                   help="the family's width argument; 0: the family's own")
    g.add_argument("--init_from", default="", metavar="CHECKPOINT", help="start from these weights")


def add_data(parser):
    g = parser.group("data", named=True)
    g.add_argument("--dataset", "--baseset", default="CIFAR10", metavar="NAME",
                   help="a data set's name (python -m landscape.data list), folder:PATH or text:PATH")
    g.add_argument("--image_size", type=natural, default=0,
                   help="pixels a side, tokens of a text; 0: the data set's own, or the least that the network takes")
    g.add_argument("--channels", type=natural, default=0, choices=(0, 1, 3), help="0: the data set's own")
    g.add_argument("--train_size", type=natural, default=0, help="training images used; 0: all")
    g.add_argument("--val_size", type=int, default=-1,
                   help="training images held out for choosing; -1: 5000 of a set of 20,000 or more, else none")
    g.add_argument("--augment", default="auto", metavar="LIST",
                   help="crop,flip,… (python -m landscape.data list), none, or auto: the data set's usual ones")
    g.add_argument("--normalize", default="dataset", metavar="KIND",
                   help="dataset, legacy (std 0.2023 …), imagenet, none, or m1,m2,m3/s1,s2,s3")
    g.add_argument("--noise_rate", type=number(0), default=0.0,
                   help="rate of the label noise of the training set; 0: none")
    g.add_argument("--noise_kind", default="symmetric", choices=NOISE_KINDS,
                   help="symmetric: that share of each class gets another class; uniform: that share of all gets any "
                        "class; asymmetric: CIFAR-10's confused pairs (landscape/data.py)")
    g.add_argument("--noise_file", default="", metavar="FILE[:KEY]",
                   help="given labels from a file instead; with --noise_rate FILE.npy is a stored permutation of the "
                        "training images, whose first ones get the labels of FILE_labels.npy (learning-subspaces)")
    add_data_here(parser)


def add_data_here(parser):
    p = parser.group("data on this machine")
    p.add_argument("--data_root", default=None, metavar="DIR",
                   help="where the data sets lie (default: $DATA_ROOT, else ~/data)")
    p.add_argument("--workers", type=natural, default=2, help="decoding processes, for sets larger than memory")


def add_training(parser):
    g = parser.group("training", named=True)
    g.add_argument("--epochs", type=natural, default=100)
    g.add_argument("--bs", type=positive, default=128, help="images a step")
    g.add_argument("--lr", type=number(0), default=0.1, help="learning rate at its highest")
    g.add_argument("--opt", default="SGD", choices=("SGD", "Adam", "AdamW"))
    g.add_argument("--momentum", type=number(0), default=0.9, help="of SGD")
    g.add_argument("--nesterov", action="store_true")
    g.add_argument("--adam_eps", type=number(above=0), default=1e-8, help="epsilon of Adam and AdamW (Keras: 1e-7)")
    g.add_argument("--weight_decay", type=number(0), default=None,
                   help="default: 5e-4 for SGD, 0 for Adam, 0.01 for AdamW")
    g.add_argument("--scheduler", default="multistep",
                   choices=("multistep", "linear", "cosine", "cyclic", "constant", "linear_decay", "swa_cyclic",
                            "swa_constant", "fge", *DROPS),
                   help="multistep multiplies by --gamma at --milestones; linear by 0.1 at dbViz's (E//2.667, "
                        "E//1.6, E//1.142); drop_a halves at epochs 9, 19 and 29, drop_paper at 10, 20 and 30; cyclic "
                        "is a cosine of its own in each of --cycles (snapshot ensembles); swa_* and fge come to "
                        "--swa_lr, swa_cyclic and fge in --cycles; all are applied per step")
    g.add_argument("--swa_lr", type=number(0), default=0.05, help="rate from --swa_start on")
    g.add_argument("--swa_start", type=number(0, 1), default=0.75, help="where it begins, as a share of the epochs")
    g.add_argument("--cycles", type=positive, default=3, help="of cyclic, swa_cyclic and fge (after --swa_start)")
    g.add_argument("--milestones", default="auto", metavar="E,E,…",
                   help="epochs, of multistep; auto: 3/8, 5/8 and 7/8 of the run")
    g.add_argument("--gamma", type=number(0, 1), default=0.1, help="of multistep: the factor at each milestone")
    g.add_argument("--warmup", type=number(0), default=0.0, metavar="EPOCHS", help="linear from 0")
    g.add_argument("--label_smoothing", type=number(0, 1), default=0.0)
    g.add_argument("--clip_norm", type=number(0), default=0.0, help="largest norm of the gradient; 0: no clipping")
    g.add_argument("--accumulate", type=positive, default=1, metavar="K",
                   help="split each step's images into K parts to save memory")
    g.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"),
                   help="auto: bf16 autocast where the device computes in it, else fp32; fp16 needs CUDA")
    g.add_argument("--compile", action="store_true", help="torch.compile the network")
    g.add_argument("--sync_bn", action="store_true",
                   help="under torchrun: BatchNorm over the whole batch of all processes (CUDA)")
    g.add_argument("--train_mode", default="naive", choices=TRAIN_MODES,
                   help="what a step minimises (landscape/objectives.py)")
    g.add_argument("--sam_radius", type=number(above=0), default=None, metavar="RHO",
                   help="sharpness-aware minimisation around any --opt: norm of the perturbation (default: off)")
    g.add_argument("--mixup_alpha", type=number(above=0), default=1.0, help="mixup: Beta(alpha, alpha)")
    g.add_argument("--cutmix_beta", type=number(above=0), default=1.0, help="cutmix: Beta(beta, beta)")
    g.add_argument("--cutmix_prob", type=number(0, 1), default=0.5, help="cutmix: share of the batches that are mixed")
    g.add_argument("--adv_epsilon", type=number(0, 1), default=8 / 255,
                   help="adv: radius of the ball, in pixels of [0, 1]")
    g.add_argument("--adv_step", type=number(0, 1), default=2 / 255, help="adv: step of the attack")
    g.add_argument("--adv_steps", type=natural, default=10, help="adv: steps of the attack")
    g.add_argument("--teacher", "--teacher_loc", default="", metavar="RUN_OR_CHECKPOINT", help="for the distillations")
    g.add_argument("--teacher_net", default="", metavar="NAME", help="its network, where it is a foreign file")
    g.add_argument("--distill_temp", type=number(above=0), default=30.0, help="temperature of distillation (Hinton)")
    g.add_argument("--snapshots", default="", metavar="E,E,…",
                   help="keep the weights after these epochs (0: before the first), all, every=K, or cycles: at the "
                        "end of each of the schedule's, for averages and ensembles of them")
    g.add_argument("--eval_every", type=natural, default=1, metavar="EPOCHS",
                   help="epochs between points of the validation and test curves; 0: only at the end")
    parser.add_argument("--time_steps", type=natural, default=0, metavar="N",
                        help="only time N steps of the training, print what all of it would take, and write nothing")


def add_seeds(parser):
    g = parser.group("seeds", named=True)
    g.add_argument("--init_seed", type=int, default=None, help="initial weights (default: --seed)")
    g.add_argument("--order_seed", type=int, default=None, help="order of the batches, dropout (default: --seed)")
    g.add_argument("--augment_seed", type=int, default=None, help="augmentation (default: --order_seed)")
    g.add_argument("--data_seed", "--set_data_seed", type=int, default=1, help="validation split and subset")
    g.add_argument("--noise_seed", type=int, default=None, help="label noise (default: --data_seed)")
    parser.add_argument("--seed", "--set_seed", type=int, default=1,
                        help="sets --init_seed and --order_seed: data and planes stay equal, so that models compare")


def add_machine(parser):
    g = parser.group("machine")
    g.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or mps")
    g.add_argument("--threads", type=natural, default=0,
                   help="CPU threads; 0: OMP_NUM_THREADS, else 1 on up to four cores and half of the cores on more")
    g.add_argument("--eval_bs", type=natural, default=0, help="images a batch in measuring; 0: by device")
    g.add_argument("--deterministic", action="store_true", help="refuse kernels that are not reproducible (CUDA)")
    g.add_argument("--save_every", type=number(0), default=30.0, metavar="SECONDS",
                   help="seconds between states saved for resuming")


def add_output(parser):
    g = parser.group("output")
    g.add_argument("--runs", default="runs", metavar="DIR", help="the folder of all runs")
    g.add_argument("--force", action="store_true", help="do a finished run again")
    g.add_argument("--smoke", "--dryrun", action="store_true",
                   help="the whole path, tiny, on a CPU (or --device), on the bundled digits; own folders in DIR/smoke")
    g.add_argument("--dry_run", action="store_true", help="print the plan and write nothing")
    w = parser.group("wandb")
    w.add_argument("--active_log", "--wandb", action="store_true", help="log to wandb as well")
    w.add_argument("--wandb_mode", default="online", choices=("online", "offline"))
    w.add_argument("--wandb_project", default="landscape-lab")
    w.add_argument("--wandb_entity", default=None)
    w.add_argument("--wandb_group", default=None)
    w.add_argument("--wandb_tags", default="", metavar="TAG,TAG,…")
    w.add_argument("--wandb_artifact", action="store_true", help="upload the final weights too")


SEVERAL = {"seeds": "seed", "noise_rates": "noise_rate", "noise_seeds": "noise_seed"}


def add_several(parser):
    """Flags of a program that trains several networks at once; see each and landscape/stacked.py."""
    g = parser.group("several networks")
    g.add_argument("--seeds", type=several(whole), default=None, metavar="S,S,…|A-B", help="--seed of each")
    g.add_argument("--noise_rates", type=several(number(0)), default=None, metavar="R,R,…",
                   help="--noise_rate of each; every one with every seed")
    g.add_argument("--noise_seeds", type=several(whole), default=None, metavar="S,S,…|A-B",
                   help="--noise_seed of each; every one with every seed and rate")
    g.add_argument("--stack", default="auto", choices=("auto", "always", "never"),
                   help="train them as one stacked network; auto: where a few timed steps say that it is faster")


def each(args):
    """The resolved settings of each of several networks: those that it would have alone. args are not resolved yet."""
    from landscape import runs

    for many, one in SEVERAL.items():
        if vars(args)[many] and vars(args)[one] != args.defaults[one]:
            raise UsageError(f"--{many} and --{one}: give one of the two")
    members = []
    for values in itertools.product(*(vars(args)[many] or [vars(args)[one]] for many, one in SEVERAL.items())):
        member = copy.copy(args)
        vars(member).update(zip(SEVERAL.values(), values))
        member = resolve(member)
        member.flags = [k for k in member.flags if k not in (*SEVERAL, "stack")]  # how it is trained is not what it is
        members.append(member)
    names = [runs.name_of(member.net, member.differs) for member in members]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UsageError(f"two of the {len(names)} networks would be the same, {twice[0]}: --seeds changes nothing "
                         "where --init_seed and --order_seed are given")
    return members


def add_point(group):
    """--point, for scripts that take trained networks, subspaces among them."""
    group.add_argument("--point", default="", metavar="POINT",
                       help="of a subspace: centre (the default), vertex=K, t=T along a line or curve, t=C,C,… in a "
                            "simplex; main.py takes several, with ; between them")
    group.add_argument("--bn_images", type=natural, default=5000,
                       help="training images from which BatchNorm statistics are re-estimated at a point; 0: all")


def add_foreign(parser, net="", dataset="CIFAR10", named=False):
    """What a checkpoint that does not describe itself is, in a group of flags. net, dataset: their defaults; without a
    net each file is one of the name of its folder, unless --load_net names the file itself."""
    g = parser.group("of foreign checkpoints", named)
    g.add_argument("--net", default=net, metavar="NAME",
                   help="the network, where --load_net is one file" if net else
                        "their network (default: the name of their folder)")
    g.add_argument("--width", "--widen_factor", type=natural, default=0, help="its width; 0: the family's own")
    g.add_argument("--dataset", "--baseset", default=dataset, metavar="NAME",
                   help="the set they were trained on" if dataset else
                        "the data, all of its training set; default: the training set of the runs")
    g.add_argument("--normalize", default="dataset", metavar="KIND",
                   help="how their inputs were normalised: dataset, legacy (dbViz, pytorch-cifar), imagenet, none, or "
                        "m1,m2,m3/s1,s2,s3")
    g.add_argument("--image_size", type=natural, default=0, help="pixels a side; 0: the data set's own")
    g.add_argument("--channels", type=natural, default=0, choices=(0, 1, 3), help="0: the data set's own")


def add_between(parser, named=False):
    """The points of a path through given networks (landscape/between.py); the step of --at is the script's."""
    g = parser.group("a path of networks", named)
    g.add_argument("--between", type=several(str), default=[], metavar="RUN,RUN,…",
                   help="instead: networks on the straight lines from each of these (runs or checkpoints) to the next, "
                        "BatchNorm estimated anew at every point (--bn_images)")
    g.add_argument("--at", type=several(number(0)), default=[], metavar="T,T,…",
                   help="positions: 0 is the first network, 1 the second, 0.25 a quarter of the way; default: quarters")
    g.add_argument("--along", default="", metavar="KEY",
                   help="--between names one folder: its networks (--select) in the order of this setting, such as "
                        "width, with no lines between them")
    g.add_argument("--align", default="none", choices=("none", "weights"),
                   help="weights: permute the hidden units of each network towards the one before it")


def add_select(group):
    """--select, for scripts that take a folder of many networks."""
    group.add_argument("--select", nargs="+", default=[], metavar="KEY=VALUE|VALUE",
                       help="only the runs with these settings, such as opt=SGD net=resnet20|vgg11_bn")


def add_saved_maps(parser):
    """The networks and the planes of a program that reads saved class maps; returns the group of the networks."""
    g = parser.group("networks", named=True)
    g.add_argument("--load_net", default="runs/regions", metavar="DIR", help="the folder given to save_preds.py")
    g.add_argument("--which", default=None, choices=("model", "best"),
                   help="class maps of the last weights, or of the best on a run's validation set")
    g.add_argument("--group_by", default="net,width", metavar="KEY,KEY,…",
                   help="the settings that make a group; a foreign checkpoint's group is its folder")
    add_select(g)
    add_maps(parser, chosen=False)
    return g


def add_maps(parser, chosen=True):
    """What determines class maps; with chosen=False every flag is None unless given, to select among those on disk."""
    def given(value):
        return value if chosen else None

    g = parser.group("planes", named=True)
    g.add_argument("--planes", "--epochs", type=positive, default=given(500),
                   help="planes, each through three images of different classes (dbViz's script calls it --epochs)")
    g.add_argument("--resolution", type=side, default=given(50), help="points a side of each grid")
    g.add_argument("--range_l", type=number(), default=given(0.1),
                   help="margin left and below, share of the anchors' box")
    g.add_argument("--range_r", type=number(), default=given(0.1), help="margin right and above")
    g.add_argument("--plane_seed", "--set_data_seed", type=int, default=given(1), help="choice of the anchors")
    g.add_argument("--split", default=given("test"), choices=("test", "train"), help="where the anchors come from")
    g.add_argument("--as_published", action="store_true",
                   help="dbViz's own draw of anchors and its 0.2023 std, to compare with its class maps")
    g.add_argument("--anchors", default=given("distinct"), choices=ANCHORS,
                   help="what spans a plane (landscape/anchors.py says it of each)")
    add_refine(g, given(0))


def add_refine(group, default):
    group.add_argument("--refine", type=int, default=default, choices=(0, 4, 8, 16, 32), metavar="STRIDE",
                       help="evaluate every so many-th grid line, then only where classes may meet; misses regions "
                            "inside a cell of that size, and says how many points may differ; 0: every point")


ANCHORS = ("distinct", "random", "same_class", "correct", "incorrect", "one_mislabelled", "uniform", "noise",
           "shuffled", "two_shuffled", "gaussian", "rotated", "one_pixel", "foreign", "pgd", "pgd_targeted")
NOISE_TYPES = {"gaussian": "gaussian", "rotation": "rotated", "uniform_random": "uniform",
               "random_shuffle": "shuffled", "two_random_shuffle": "two_shuffled"}  # dbViz's words


def add_anchors(parser):
    """Where the anchors of planes come from, where --imgs does not name them."""
    g = parser.group("anchors")
    g.add_argument("--triplets", default="", metavar="FILE", help="take the anchors' ids from this file")
    g.add_argument("--save_triplets", default="", metavar="FILE", help="write the anchors' ids into this file")
    g.add_argument("--foreign_set", default="MNIST", metavar="NAME", help="of --anchors foreign: the other data set")
    g.add_argument("--attack_net", default="", metavar="RUN_OR_CHECKPOINT",
                   help="of --anchors pgd: the network that is attacked (default: the first one drawn)")
    g.add_argument("--attack_steps", type=positive, default=20, help="of --anchors pgd: steps of 2/255 within 8/255")
    g.add_argument("--adv", action="store_true", help="--anchors pgd, in dbViz's words")
    g.add_argument("--targeted", action="store_true", help="with --adv: --anchors pgd_targeted")
    g.add_argument("--noise_type", default=None, choices=tuple(NOISE_TYPES), help="--anchors in dbViz's words")


def add_figures(parser):
    g = parser.group("figures")
    g.add_argument("--formats", default="png", metavar="EXT,EXT,…", help="png, pdf, svg")


def training_parser(script, doc):
    """A parser with every group that a training needs; the script adds its own."""
    parser = Parser(script, doc)
    for add in (add_network, add_data, add_training, add_seeds, add_machine, add_output):
        add(parser)
    return parser


def resolve(args):
    """Fill in what follows from other settings: seeds, weight decay, precision; apply --smoke. Returns args.

    args.differs becomes the settings of the parser's named groups that differ from their defaults: they name the run.
    Raises UsageError for values that do not go together.
    """
    defaults = argparse.Namespace(**args.defaults)
    args.differs = {}
    if getattr(args, "smoke", False):
        shrink(args)
    complete(args)
    complete(defaults)
    if hasattr(args, "precision"):
        args.precision = resolved_precision(args.precision, args.device)
    args.differs = {k: getattr(args, k) for k in args.naming if getattr(args, k) != getattr(defaults, k)}
    for name in {"teacher", "load_net"} & args.differs.keys():  # ./a, a and /here/a name one run
        path, here = Path(args.differs[name]), Path.cwd()
        args.differs[name] = str(path.relative_to(here) if path.is_relative_to(here) else path)
    args.flags = [k for k in args.defaults if k not in ("help", "config", "print_config")]
    del args.defaults, args.naming
    return args


def complete(args):
    """Seeds and weight decay that follow from other settings, and checks of settings against each other."""
    if hasattr(args, "init_seed"):
        args.init_seed = args.seed if args.init_seed is None else args.init_seed
        args.order_seed = args.seed if args.order_seed is None else args.order_seed
        args.augment_seed = args.order_seed if args.augment_seed is None else args.augment_seed
        args.noise_seed = args.data_seed if args.noise_seed is None else args.noise_seed
    if hasattr(args, "opt"):
        if args.weight_decay is None:
            args.weight_decay = {"SGD": 5e-4, "Adam": 0.0, "AdamW": 0.01}[args.opt]
        if args.accumulate > args.bs:
            raise UsageError(f"--accumulate {args.accumulate} is more than --bs {args.bs}: there is no part smaller "
                             "than one image")
        if args.warmup > args.epochs:
            raise UsageError(f"--warmup {args.warmup:g} epochs is longer than --epochs {args.epochs}")
        if args.teacher and "distillation" not in args.train_mode:
            raise UsageError(f"--teacher is for a distillation, not for --train_mode {args.train_mode}")
        if "distillation" in args.train_mode and not args.teacher:
            raise UsageError(f"--train_mode {args.train_mode} needs --teacher RUN_OR_CHECKPOINT")
        if args.sam_radius and args.precision == "fp16":
            raise UsageError("--sam_radius with --precision fp16 is not offered: use bf16")
        if args.noise_rate >= 1:
            raise UsageError(f"--noise_rate {args.noise_rate:g}: a share in [0, 1) is expected")
        if args.val_size < -1:
            raise UsageError(f"--val_size {args.val_size}: a number of images is expected, or -1 for the usual one")
    if getattr(args, "noise_type", None):
        args.anchors = NOISE_TYPES[args.noise_type]
    if getattr(args, "adv", False):
        args.anchors = "pgd_targeted" if args.targeted else "pgd"
    if not set(getattr(args, "formats", "png").split(",")) <= {"png", "pdf", "svg"}:
        raise UsageError(f"--formats {args.formats!r}: some of png, pdf, svg are expected, with commas between them")


def shrink(args):
    """What --smoke makes of the settings: caps on sizes, the bundled digits, the CPU unless --device names another,
    folders of its own."""
    for name, cap in SMOKE_CAPS.items():
        value = getattr(args, name, None)
        if value is not None and (value > cap or (name == "train_size" and value == 0)):
            setattr(args, name, cap)
    if getattr(args, "dataset", "") and not args.dataset.startswith("fake"):
        args.dataset = "fake_text" if args.dataset.startswith("text:") else "digits"
        plain = {"noise_file": "", "noise_kind": "symmetric", "channels": 0, "image_size": 0, "normalize": "dataset"}
        for name, value in plain.items():
            if hasattr(args, name):
                setattr(args, name, value)
        if getattr(args, "augment", "auto") != "none" and hasattr(args, "augment"):
            args.augment = "crop" if args.dataset == "digits" else "none"
    net = getattr(args, "net", "") if hasattr(args, "epochs") else ""
    if net and ":" not in net and models.entry(net).width == "widen_factor":
        args.width = 1  # a wide ResNet of factor 30 has 328 million parameters
    if getattr(args, "device", "") == "auto":
        args.device = "cpu"
    if hasattr(args, "runs"):
        own = Path(args.runs) / "smoke"

        def made(path):  # by an earlier --smoke
            path = Path(path)
            inside = path.is_relative_to(args.runs) and not path.is_relative_to(own)
            return str(own / path.relative_to(args.runs)) if inside else str(path)

        for name in ("load_net", "connector", "star"):
            if getattr(args, name, ""):
                setattr(args, name, made(getattr(args, name)))
        for name in ("members", "cyclic", "a", "b", "anchors", "held_out", "stars", "between"):  # elsewhere no paths
            if isinstance(getattr(args, name, None), list):
                setattr(args, name, [made(path) for path in getattr(args, name)])
        args.runs = str(own)
    if getattr(args, "snapshots", "") not in ("", "all"):
        args.snapshots = f"0,{args.epochs}"


def library(**changes):
    """The settings of a training for use from Python: main.py's names and defaults, checked in the same way.

    library(dataset="digits", net="resnet20", epochs=5) is what main.py --dataset digits --net resnet20 --epochs 5 has.
    """
    parser = training_parser("main.py", "")
    flags = {a.dest: a for a in parser._actions}
    argv = []
    for key, value in changes.items():
        if isinstance(flags.get(key), argparse._StoreTrueAction):
            argv += [f"--{key}"] if value else []
        else:
            argv += [f"--{key}={value}"]
    return resolve(parser.settings(argv))


def resolved_precision(precision, device):
    """fp32, bf16 or fp16. 'auto' asks the CPU's flags first, and loads torch only where a GPU may be."""
    gpu = str(device).startswith("cuda") or (device == "auto" and Path("/dev/nvidiactl").exists())
    if gpu and device == "auto":
        import torch

        gpu = torch.cuda.is_available()
    if precision == "fp16" and not gpu:
        raise UsageError("--precision fp16 is for CUDA only (a CPU computes it very slowly): use bf16 or fp32")
    if precision != "auto":
        return precision
    if gpu:
        import torch

        lacks = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "fp32" if lacks else "bf16"
    try:
        flags = Path("/proc/cpuinfo").read_text() if device in ("auto", "cpu") else ""
    except OSError:
        flags = ""
    return "bf16" if "avx512_bf16" in flags else "fp32"


def default_threads():
    """Threads for a run that may share its machine. With one thread per core, torch's default, a single busy
    neighbour makes every parallel region wait: 0.2 of the speed of one thread was measured on two cores."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if cores <= 4 else cores // 2


def keep_memory():
    """Have glibc keep memory that is freed, up to 1 GiB, for what comes next, where it would hand large blocks back to
    the system: the first touch of a fresh page costs as much as ten of a used one. Estimating BatchNorm in batches of
    512 takes 0.73 of the time. Other C libraries are left as they are."""
    from ctypes import CDLL

    if sys.platform == "linux" and hasattr(libc := CDLL(None), "mallopt"):
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(parameter, 1 << 30)


def set_up_device(args):
    """Apply --threads and --deterministic and return the torch.device that --device names."""
    import torch

    from landscape import seeding

    keep_memory()
    torch.set_num_threads(args.threads or default_threads())
    seeding.deterministic(args.deterministic)
    name = args.device
    if name == "auto":
        mps = getattr(torch.backends, "mps", None)
        name = "cuda" if torch.cuda.is_available() else "mps" if mps and mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: one of auto, cpu, cuda, cuda:0 …, mps is expected") from None
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # its default for convolutions: fp32 would have 10 bits of mantissa
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"--device {name}: this machine shows {count} CUDA devices; use --device cpu")
    elif device.type not in ("cpu", "mps"):
        raise UsageError(f"--device {name}: one of auto, cpu, cuda, cuda:0 …, mps is expected")
    return parallel.join(device)


def run(main):
    """Call main(argv) of a script and leave with the house's exit codes; see the module errors."""
    name = Path(sys.argv[0]).name

    def stop(number, frame):  # outside a loop that saves, SIGTERM means what Ctrl-C means
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if parallel.follows():
        sys.stdout = open(os.devnull, "w")
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except Refusal as e:
        code = complain(name, e, e.exit_code)
    except ModelError as e:
        code = complain(name, e, 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full; free some space and run the same command again" if full else e.strerror or str(e)
        code = complain(name, f"{e.filename or 'writing'}: {what}", 3)
    except (MemoryError, RuntimeError) as e:
        if parallel.joined() and re.search("onnection|NCCL|[Tt]imed out|gloo", str(e)):
            code = complain(name, "another process of this training has ended; what was saved is kept, run the same "
                                  "command again to go on", 75)
            os._exit(code)  # what waits for the other process would wait on
        if not isinstance(e, MemoryError) and not re.search("can't allocate memory|out of memory", str(e)):
            raise
        code = complain(name, "this machine has too little memory for these settings; smaller sizes, such as of "
                              "--resolution, --bs or --eval_bs, need less", 2)
    except KeyboardInterrupt:
        code = complain(name, "stopped; what was saved is kept, run the same command again to go on", 75)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # on the way out already: a cluster asks more than once
    sys.exit(code)


def complain(name, message, code):
    print(f"{name}: {' '.join(str(message).split())}", file=sys.stderr)
    return code
