"""The parser: precedence, strictness, what names a run, --smoke."""

import subprocess
import sys
from ctypes import CDLL
from pathlib import Path

import pytest

from landscape import cli, runs
from landscape.errors import UsageError


def parser():
    return cli.training_parser("main.py", "Train.\n\n    python main.py --smoke")


def resolved(*argv):
    return cli.resolve(parser().settings(list(argv)))


def config(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_then_configs_in_order_then_flags(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("epochs: 3\nlr: 1e-3\nbs: 7")
    two.write_text("epochs: 4")
    args = resolved("--config", str(one), "--config", str(two), "--bs", "9")
    assert (args.epochs, args.lr, args.bs, args.momentum) == (4, 0.001, 9, 0.9)


def test_a_lone_yaml_file_means_config(tmp_path):
    assert resolved(config(tmp_path, "epochs: 3"), "--lr", "1").epochs == 3


def test_aliases_are_the_same_setting(tmp_path):
    args = resolved(config(tmp_path, "set_seed: 5\nbaseset: digits"))
    assert (args.seed, args.dataset, args.init_seed, args.order_seed) == (5, "digits", 5, 5)


@pytest.mark.parametrize(("text", "said"), [
    ("epochz: 3", r"line 1: unknown key 'epochz'; did you mean epochs"),
    ("lr: 1\nepochs: many", r"line 2: argument --epochs"),
    ("nesterov: 1", "nesterov is true or false"),
    ("opt: sgd", "invalid choice: 'sgd'"),
    ("script: save_preds.py\nplanes: 3", r"another script: python save_preds.py --config"),
    ("- epochs", "a mapping of settings"),
    ("epochs: [", "not YAML"),
    ("epochs: {a: 1}", "epochs takes a value"),
])  # fmt: skip
def test_a_wrong_config_is_refused_with_place_and_mend(tmp_path, text, said):
    with pytest.raises(UsageError, match=said):
        resolved(config(tmp_path, text))


@pytest.mark.parametrize(("argv", "said"), [
    (["--epochss", "3"], "did you mean --epochs"),
    (["--ep", "3"], "unknown argument --ep"),
    (["--epochs", "-1"], "below 0"),
    (["--lr", "nan"], "not a number"),
    (["--noise_rate", "1"], r"\[0, 1\)"),
    (["--accumulate", "200"], "more than --bs"),
    (["--warmup", "200"], "longer than --epochs"),
    (["--precision", "fp16", "--device", "cpu"], "CUDA only"),
])  # fmt: skip
def test_a_wrong_flag_is_refused(argv, said):
    with pytest.raises(UsageError, match=said):
        resolved(*argv)


def test_print_config_shows_values_with_their_origin(tmp_path, capsys):
    path = config(tmp_path, "epochs: 3")
    with pytest.raises(SystemExit) as stop:
        resolved(path, "--lr", "0.5", "--print_config")
    assert stop.value.code == 0
    lines = {line.split(":")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["epochs"].startswith("epochs: 3") and lines["epochs"].endswith(path)
    assert lines["lr"].startswith("lr: 0.5") and lines["lr"].endswith("# flag")
    assert lines["bs"].endswith("# default")


def test_what_is_printed_can_be_read_back(tmp_path, capsys):
    with pytest.raises(SystemExit):
        resolved("--epochs", "3", "--net", "mlp", "--augment", "crop,flip", "--print_config")
    given = [line for line in capsys.readouterr().out.splitlines() if "# flag" in line]
    args = resolved(config(tmp_path, "\n".join(given)))
    assert (args.epochs, args.net, args.augment) == (3, "mlp", "crop,flip")


# ---- names of runs -------------------------------------------------------------------------------------------------


def name(*argv):
    return runs.folder("regions", resolved("--precision", "fp32", *argv)).name


def test_device_workers_paths_labels_and_logging_do_not_name_a_run():
    same = ["--device", "cpu", "--workers", "7", "--threads", "3", "--eval_bs", "5", "--active_log",
            "--save_every", "1", "--data_root", "/elsewhere", "--wandb_tags", "a,b", "--deterministic"]  # fmt: skip
    assert name() == name(*same)


def test_a_path_inside_this_folder_is_one_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ways = ["runs/regions/a", "./runs/regions/a/", f"{tmp_path}/runs/regions/a"]
    assert len({name("--train_mode", "distillation", "--teacher", path) for path in ways}) == 1
    assert name("--train_mode", "distillation", "--teacher", "/elsewhere/a") != name(
        "--train_mode", "distillation", "--teacher", "elsewhere/a")


@pytest.mark.parametrize("argv", [
    ["--lr", "0.2"], ["--seed", "2"], ["--net", "VGG"], ["--order_seed", "3"], ["--augment", "none"],
    ["--val_size", "0"],
    ["--nesterov"], ["--noise_rate", "0.2"], ["--dataset", "MNIST"], ["--snapshots", "all"],
])  # fmt: skip
def test_what_changes_the_weights_names_the_run(argv):
    assert name() != name(*argv)


def test_saying_a_default_aloud_changes_nothing():
    assert name() == name("--lr", "0.1", "--seed", "1", "--init_seed", "1", "--epochs", "100", "--weight_decay", "5e-4")


def test_the_name_can_be_read():
    assert name("--net", "resnet20", "--seed", "2", "--lr", "0.05").startswith("CIFAR10_resnet20_lr=0.05_seed=2-")


def test_the_resolved_precision_is_part_of_the_name(monkeypatch):
    folders = set()
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(cli, "resolved_precision", lambda *_, p=precision: p)
        args = resolved()
        assert args.precision == precision
        folders.add(runs.folder("regions", args).name)
    assert len(folders) == 2


def test_seeds_follow_each_other_unless_given():
    args = resolved("--seed", "4", "--order_seed", "6", "--data_seed", "8")
    assert (args.init_seed, args.order_seed, args.augment_seed, args.data_seed, args.noise_seed) == (4, 6, 6, 8, 8)


# ---- smoke ---------------------------------------------------------------------------------------------------------


def test_smoke_is_tiny_on_digits_on_a_cpu_in_its_own_folder():
    args = resolved("--smoke", "--epochs", "200", "--dataset", "CIFAR10", "--runs", "here")
    assert (args.epochs, args.dataset, args.device, args.runs) == (1, "digits", "cpu", "here/smoke")
    assert resolved("--dryrun").epochs == 1
    assert resolved("--smoke", "--dataset", "fake").dataset == "fake"


def test_smoke_makes_wide_networks_narrow():
    assert resolved("--smoke", "--net", "WideResNet_30").width == 1
    assert resolved("--smoke", "--net", "mcnn", "--width", "12").width == 12


def test_smoke_leaves_smaller_settings_alone():
    args = resolved("--smoke", "--bs", "8", "--train_size", "20")
    assert (args.bs, args.train_size) == (8, 20)


def test_library_takes_the_names_and_defaults_of_the_flags():
    args = cli.library(dataset="digits", epochs=5, nesterov=True, augment="crop,flip")
    assert (args.dataset, args.epochs, args.nesterov, args.bs, args.init_seed) == ("digits", 5, True, 128, 1)
    with pytest.raises(UsageError, match="did you mean --epochs"):
        cli.library(epoch=5)


def test_threads_follow_the_environment_and_stay_modest(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cli.default_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    for cores, threads in ((1, 1), (4, 1), (16, 8)):
        monkeypatch.setattr(cli.os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert cli.default_threads() == threads


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(CDLL(None), "mallopt"), reason="another C library")
def test_freed_memory_is_given_out_again():
    code = ("import resource, sys\nimport torch\nfrom landscape import cli\n"
            "if sys.argv[1] == 'keep': cli.keep_memory()\n"
            "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "def use(): return torch.ones(1 << 24).sum().item()\n"  # 64 MB
            "for n in range(8):\n"
            "    if n == 4: before = faults()\n"
            "    use()\n"
            "print(faults() - before)")
    kept, plain = (int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True,
                                      cwd=Path(cli.__file__).parents[1]).stdout) for how in ("keep", "plain"))
    assert kept < plain / 10
