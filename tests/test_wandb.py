"""wandb as a second place: what arrives there, and that nothing about it stops or stalls a run."""

import csv
import http.server
import json
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import calculate_iou
import main
import save_preds
from double_descent import deep, measure
from ensembles import evaluate as ensembles_evaluate
from ensembles import similarity
from ensembles import train as training
from landscape import runs, wandb_sink
from regions import animate, ball, converge, fragmentation, margins, skips
from subspaces import evaluate as subspace_evaluate
from subspaces import train as subspace_train

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--net", "mlp", "--width", "16", "--dataset", "digits", "--train_size", "200", "--epochs", "2", "--bs", "50",
        "--precision", "fp32", "--resolution", "8", "--device", "cpu", "--threads", "1"]  # fmt: skip
TINY_DEEP = ["--net", "mlp", "--width", "16", "--dataset", "digits", "--train_size", "200", "--epochs", "2", "--lr",
             "0.01", "--threads", "1"]  # fmt: skip
KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def only_run(tmp_path):
    (done,) = (tmp_path / "runs").glob("regions/*/done")
    return done.parent


# ---- an offline run read back --------------------------------------------------------------------------------------

def records(folder):
    """Every record of the .wandb files under a run folder, oldest file first. The format is LevelDB's log: a head of 7
    bytes, then blocks of 32 KiB of pieces (crc, length, type: 1 whole, 2 first, 3 middle, 4 last)."""
    from wandb.proto import wandb_internal_pb2

    out = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at:at + 7])
            whole += data[at + 7:at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                out.append(wandb_internal_pb2.Record.FromString(whole))
                whole = b""
    return out


def ended(folder):
    kinds = [r.WhichOneof("record_type") for r in records(folder)]
    return kinds.count("exit") == len(list(folder.glob("wandb/offline-run-*")))


def items(updates):
    return {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in updates}


class Sent:
    """What a run folder sent to wandb: ids, config, history (a list of dicts), files."""

    def __init__(self, folder):
        self.ids, self.config, self.history = set(), {}, []
        deadline = time.monotonic() + 20  # wandb's own process writes the end a moment after finish() has returned
        while not ended(folder) and time.monotonic() < deadline:
            time.sleep(0.05)
        for record in records(folder):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.ids.add(record.run.run_id)
                self.config |= items(record.run.config.update)
            elif kind == "config":
                self.config |= items(record.config.update)
            elif kind == "history":
                self.history.append(items(record.history.item))
        self.files = [f for f in folder.glob("wandb/offline-run-*/files/media/**/*") if f.is_file()]

    def value(self, name):
        """The values logged under a name, in their order; a nested name counts by its first part."""
        return [h[k] for h in self.history for k in h if k == name or k.startswith(f"{name}/")]

    def tables(self, name):
        """The tables logged under a name, each as {"columns": …, "data": …}."""
        stem = name.replace(" ", "_")
        return [json.loads(f.read_text()) for f in self.files
                if f.name.startswith((name, stem)) and f.name.endswith(".table.json")]

    def pictures(self, name):
        stem = name.replace(" ", "_")
        return [f for f in self.files if f.suffix == ".png" and f.name.startswith((name, stem))
                and f.read_bytes().startswith(b"\x89PNG")]


def test_an_offline_run_holds_what_the_scripts_measured(tmp_path, monkeypatch, capsys):
    log = ["--runs", str(tmp_path / "runs"), "--active_log", "--wandb_mode", "offline", "--wandb_group", "pairs"]
    seeds = [[*TINY, "--seed", str(s), "--imgs", "none", *log] for s in (0, 1)]
    assert main.main(seeds[0]) == main.main(seeds[1]) == 0
    first = next(f.parent for f in (tmp_path / "runs").glob("regions/*seed=0*/done"))
    known = json.loads((first / "meta.json").read_text())["wandb_id"]
    sent = Sent(first)
    assert sent.ids == {known}
    assert sent.config["net"] == "mlp" and sent.config["lr"] == 0.1 and sent.config["init_seed"] == 0
    results = runs.read_json(first / "results.json")
    assert sent.config["parameters"] == results["parameters"] == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    lines = runs.read_metrics(first)
    for name in ("train_loss", "test_accuracy", "lr", "epoch"):
        assert sent.value(name) == [line[name] for line in lines], name
    assert sent.pictures("curves")

    # later scripts join the run of the training
    assert main.main([*TINY, "--load_net", str(first), "--imgs", "5,42,17", *log]) == 0
    maps = ["--load_net", str(tmp_path / "runs/regions"), "--planes", "3", "--resolution", "6"]
    assert save_preds.main([*maps, "--threads", "1", *log]) == 0
    sent = Sent(first)
    assert sent.ids == {known} and sent.pictures("decision regions")
    (table,) = sent.tables("class maps")
    assert table["columns"][0] == "group" and table["data"][0][0] == "mlp width=16"
    assert json.loads((first / "meta.json").read_text())["wandb_id"] == known

    assert calculate_iou.main([*maps, "--resamples", "50", *log]) == 0
    (home,) = (tmp_path / "runs/regions").glob("agreement_*")
    sent = Sent(home)
    (table,) = sent.tables("agreement")
    rows = [dict(zip(table["columns"], row)) for row in table["data"]]
    held = runs.read_json(home / "results.json")["scores"]
    assert {r["score"]: r["value"] for r in rows} == {s: held[s]["groups"][0]["value"] for s in held}
    assert sent.pictures("agreement") and sent.pictures("kappa")
    assert sent.ids == {json.loads((home / "meta.json").read_text())["wandb_id"]}
    assert "wandb " not in capsys.readouterr().err


IMAGES = ["--points", "6", "--directions", "2", "--device", "cpu", "--threads", "1"]
MEASURES = {"fragmentation": (fragmentation, []), "convergence": (converge, ["--resamples", "50"]),
            "margins": (margins, [*IMAGES, "--t_max", "20"]), "skips": (skips, [*IMAGES, "--along", "5"]),
            "ball": (ball, IMAGES)}  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Three networks in two groups, one of them alone in its own, with snapshots and class maps; logged nowhere yet."""
    root = tmp_path_factory.mktemp("runs")
    for width, seed in ((16, 0), (16, 1), (8, 0)):
        assert main.main([*TINY, "--width", str(width), "--seed", str(seed), "--imgs", "none", "--snapshots", "all",
                          "--runs", str(root)]) == 0
    assert save_preds.main(["--load_net", str(root / "regions"), "--planes", "12", "--resolution", "10", "--threads",
                            "1", "--runs", str(root)]) == 0
    return root


@pytest.mark.parametrize("name", MEASURES)
def test_the_table_and_the_figure_of_every_measure_arrive(measured, capsys, name):
    script, flags = MEASURES[name]
    assert script.main(["--load_net", str(measured / "regions"), "--runs", str(measured), *flags, "--active_log",
                        "--wandb_mode", "offline"]) == 0
    assert "wandb " not in capsys.readouterr().err
    (home,) = measured.glob(f"regions/{name}_*")
    sent = Sent(home)
    (table,) = sent.tables(name)
    with (home / f"{name}.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert table["columns"] == list(rows[0])
    assert [["" if v is None else str(v) for v in row] for row in table["data"]] == [list(r.values()) for r in rows]
    assert any("" in r.values() for r in rows)  # a group of one network has no interval over networks
    assert len(sent.pictures(name)) == 1


def test_deep_double_descent_sends_its_curves_its_table_and_its_figures(tmp_path):
    own = ["--runs", str(tmp_path / "runs"), "--active_log", "--wandb_mode", "offline"]
    for seed in ("0", "2"):
        deep.main([*TINY_DEEP, "--seed", seed, *own])
    trained = next((tmp_path / "runs/double_descent").glob("*seed=2*"))
    assert len(Sent(trained).value("train_loss")) == len(Sent(trained).value("test_accuracy")) == 2
    measure.main(["--load_net", str(tmp_path / "runs/double_descent"), *own])
    (home,) = (tmp_path / "runs/double_descent").glob("deep_*")
    sent = Sent(home)
    assert all(sent.pictures(name) for name in ("double_descent", "training_points"))
    (table,) = sent.tables("double descent")
    with open(home / "deep.csv") as f:
        rows = list(csv.DictReader(f))
    assert table["columns"] == list(rows[0]) and len(table["data"]) == len(rows)
    at = [table["columns"].index(k) for k in ("measure", "value")]
    sent_errors = [row[at[1]] for row in table["data"] if row[at[0]] == "test_error"]
    assert sent_errors == [float(r["value"]) for r in rows if r["measure"] == "test_error"]


def test_members_and_what_was_measured_of_them_arrive(tmp_path, capsys):
    log = ["--runs", str(tmp_path), "--device", "cpu", "--threads", "1", "--active_log", "--wandb_mode", "offline"]
    assert training.main(["--net", "mlp", "--width", "8", "--dataset", "digits", "--train_size", "100", "--epochs", "3",
                          "--bs", "50", "--precision", "fp32", "--members", "2", *log]) == 0
    members = sorted(p.parent for p in tmp_path.glob("ensembles/*/done"))
    for folder in members:
        assert Sent(folder).value("test_accuracy") == [r["test_accuracy"] for r in runs.read_metrics(folder)]
    scripts = {"similarity": (similarity, "similarity.csv", []),
               "ensembles": (ensembles_evaluate, "curves.csv", ["--samplers", "dropout", "--samples", "2",
                                                                "--plane_samples", "2", "--bn_images", "20"])}
    for name, (script, file, flags) in scripts.items():
        before = set(tmp_path.glob("ensembles/*"))
        assert script.main(["--members", *map(str, members), *flags, *log]) == 0
        (home,) = set(tmp_path.glob("ensembles/*")) - before
        sent = Sent(home)
        (table,) = sent.tables(name)
        with (home / file).open() as f:
            rows = list(csv.DictReader(f))
        assert table["columns"] == list(rows[0])
        assert [["" if v is None else str(v) for v in r] for r in table["data"]] == [list(r.values()) for r in rows]
        drawn = sorted(p.stem for p in home.glob("figures/*.png"))
        assert len(drawn) >= 5 and all(sent.pictures(p) for p in drawn)
        assert sent.ids == {json.loads((home / "meta.json").read_text())["wandb_id"]}
    assert "wandb " not in capsys.readouterr().err


def test_the_curves_the_table_and_the_figure_of_subspaces_arrive(tmp_path, capsys):
    log = ["--runs", str(tmp_path), "--device", "cpu", "--threads", "1", "--active_log", "--wandb_mode", "offline"]
    tiny = ["--net", "mlp", "--width", "8", "--dataset", "digits", "--train_size", "100", "--epochs", "2", "--bs", "50"]
    assert subspace_train.main([*tiny, *log]) == 0
    (line,) = (tmp_path / "subspaces").glob("digits_mlp*")
    sent, lines = Sent(line), runs.read_metrics(line)
    assert sent.value("test_accuracy") == [r["test_accuracy"] for r in lines] and sent.pictures("curves")
    assert subspace_evaluate.main(["--load_net", str(tmp_path / "subspaces"), "--positions", "3", *log]) == 0
    (home,) = (tmp_path / "subspaces").glob("measured_*")
    sent = Sent(home)
    (table,) = sent.tables("subspaces")
    held = runs.read_json(home / "results.json")["table"]
    assert set(table["columns"]) == set(held[0]) and len(table["data"]) == len(held)
    assert sent.pictures("along") and "wandb " not in capsys.readouterr().err


def test_the_animation_arrives_in_the_wandb_run_of_its_training(measured, capsys):
    folder = next(f.parent for f in measured.glob("regions/digits_*seed=0*/done"))
    assert animate.main([str(folder), "--imgs", "5,42,17", "--resolution", "10", "--device", "cpu", "--threads", "1",
                         "--active_log", "--wandb_mode", "offline"]) == 0
    assert "wandb " not in capsys.readouterr().err
    (gif,) = (f for f in Sent(folder).files if f.suffix == ".gif")
    (own,) = folder.glob("figures/animation_*.gif")
    assert gif.read_bytes() == own.read_bytes()


def test_a_network_trained_without_wandb_gets_one_run_for_all_later_scripts(tmp_path):
    where = ["--runs", str(tmp_path / "runs")]
    assert main.main([*TINY, "--imgs", "none", *where]) == 0
    folder = only_run(tmp_path)
    assert json.loads((folder / "meta.json").read_text())["wandb_id"] is None
    log = [*where, "--active_log", "--wandb_mode", "offline", "--load_net", str(folder)]
    for ids in ("1,2,3", "4,5,6"):
        assert main.main([*TINY, "--imgs", ids, *log]) == 0
    sent = Sent(folder)
    assert len(sent.ids) == 1 and len(sent.pictures("decision regions")) == 2
    assert sent.ids == {json.loads((folder / "meta.json").read_text())["wandb_id"]}


def test_the_id_is_noted_at_the_start_and_a_resumed_run_joins_it(tmp_path, monkeypatch):
    log = ["--runs", str(tmp_path / "runs"), "--active_log", "--wandb_mode", "offline", "--imgs", "none"]
    whole = runs.Run.log

    def killed(self, record):
        whole(self, record)
        raise MemoryError("as if killed")

    monkeypatch.setattr(runs.Run, "log", killed)
    with pytest.raises(MemoryError):
        main.main([*TINY, *log])
    (meta,) = (tmp_path / "runs").glob("regions/*/meta.json")
    known = json.loads(meta.read_text())["wandb_id"]
    assert known
    monkeypatch.setattr(runs.Run, "log", whole)
    assert main.main([*TINY, *log]) == 0
    assert json.loads(meta.read_text())["wandb_id"] == known and Sent(meta.parent).ids == {known}


# ---- it never stops or stalls a run --------------------------------------------------------------------------------

def test_without_wandb_a_run_says_so_once_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main.main([*TINY, "--imgs", "none", "--runs", str(tmp_path / "runs"), "--active_log"]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "is not installed" in err and "pip install wandb" in err
    assert len(runs.read_metrics(only_run(tmp_path))) == 2


@pytest.mark.parametrize("broken", ["empty", "raises"])
def test_a_broken_installation_is_one_line_too(tmp_path, monkeypatch, capsys, broken):
    package = tmp_path / "path" / "wandb"
    package.mkdir(parents=True)
    raises = "raise TypeError('Descriptors cannot be created directly.\\nMore lines')"
    (package / "__init__.py").write_text(raises if broken == "raises" else "")
    monkeypatch.syspath_prepend(str(package.parent))
    for name in [n for n in sys.modules if n == "wandb" or n.startswith("wandb.")]:
        monkeypatch.delitem(sys.modules, name)
    args = main.make_parser().settings(["--active_log", "--wandb_mode", "offline"])
    sink = wandb_sink.open_sink(args, tmp_path, {}, None)
    assert isinstance(sink, wandb_sink.Silent)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "run folder only" in err and "More lines" not in err


def test_without_a_key_it_logs_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    assert "no key" in wandb_sink.lacks(wandb)


def test_a_dead_network_costs_seconds_and_the_run_completes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    spent = []

    def timed(call):
        def timing(*args):
            began = time.monotonic()
            try:
                return call(*args)
            finally:
                spent.append(time.monotonic() - began)
        return timing

    monkeypatch.setattr(runs, "open_sink", timed(runs.open_sink))
    monkeypatch.setattr(wandb_sink.Wandb, "finish", timed(wandb_sink.Wandb.finish))
    assert main.main([*TINY, "--imgs", "none", "--runs", str(tmp_path / "runs"), "--active_log"]) == 0
    assert len(spent) == 2 and sum(spent) < 12
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot be reached" in err and "wandb sync" in err
    assert len(Sent(only_run(tmp_path)).value("train_loss")) == 2  # logged offline


class Server(http.server.ThreadingHTTPServer):
    """A wandb that starts a run (answers_start) and then, or from the first, answers no more."""

    def __init__(self, answers_start):
        self.answers_start, self.started = answers_start, threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({}) if self.server.answers_start else time.sleep(60)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if "upsertBucket" in body and self.server.answers_start:
            self.server.started.set()
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
            bucket = {"id": "x", "name": json.loads(body)["variables"].get("name") or "abcdefgh", "config": "{}",
                      "project": project, "historyLineCount": 0}  # fmt: skip
            return self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        if not self.server.answers_start or self.server.started.is_set():
            return time.sleep(60)
        viewer = {"id": "e", "entity": "e", "username": "e", "flags": "{}", "teams": {"edges": []}}
        return self.answer({"data": {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "features": []}}})


SINK = """
import argparse, sys
from pathlib import Path
from landscape import wandb_sink
wandb_sink.SECONDS, wandb_sink.ANSWER = 4, 1
args = argparse.Namespace(active_log=True, wandb_mode="online", wandb_project="p", wandb_entity=None, wandb_group=None,
                          wandb_tags="")
sink = wandb_sink.open_sink(args, Path(sys.argv[1]), {}, None)
sink.log({"a": 1})
sink.finish()
print("the run goes on")
"""


@pytest.mark.parametrize(("answers_start", "said"), [(False, "did not answer"), (True, "wandb ")],
                         ids=["from the first", "from the middle"])
def test_a_server_that_does_not_answer_holds_nothing_up_for_long(tmp_path, answers_start, said):
    server, began = Server(answers_start), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SINK, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY})
    assert done.returncode == 0 and "the run goes on" in done.stdout and "Traceback" not in done.stderr
    assert said in done.stderr, done.stderr
    assert time.monotonic() - began < 20
    assert list(tmp_path.glob("wandb/*/*.wandb"))  # what was logged lies here
    server.shutdown()
